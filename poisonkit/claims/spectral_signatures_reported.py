"""Spectral Signatures: the numbers that the paper prints."""

#: Natural accuracy of a network trained on clean data, in percent (section 4.4).
CLEAN_ACCURACY = 92.67
#: Table 2: target, share and Nat 1, Pois 1, poisons left, Nat 2, Pois 2, Std Pois in
#: percent. The table shows each source class as a picture only; the sources are read
#: from the pairs that section 4.2 lists. It lists cat to dog where the table prints a
#: second row for target cat, whose clean-trained rate of 8 % is one of dogs called cats.
TABLE_2 = {
    ("airplane", "bird", 0.05): (92.27, 74.20, 57, 92.64, 2.00, 1.20),
    ("airplane", "bird", 0.10): (92.32, 89.80, 7, 92.68, 1.50, 1.20),
    ("automobile", "cat", 0.05): (92.45, 83.30, 24, 92.24, 0.20, 0.10),
    ("automobile", "cat", 0.10): (92.39, 92.00, 0, 92.44, 0.00, 0.10),
    ("automobile", "dog", 0.05): (92.17, 89.80, 7, 93.01, 0.00, 0.00),
    ("automobile", "dog", 0.10): (92.55, 94.30, 1, 92.64, 0.00, 0.00),
    ("cat", "horse", 0.05): (92.60, 99.80, 0, 92.57, 1.00, 0.80),
    ("cat", "horse", 0.10): (92.26, 99.80, 0, 92.63, 1.20, 0.80),
    ("dog", "cat", 0.05): (92.86, 98.60, 0, 92.79, 8.30, 8.00),
    ("dog", "cat", 0.10): (92.29, 99.10, 0, 92.57, 8.20, 8.00),
    ("horse", "deer", 0.05): (92.68, 99.30, 0, 92.68, 1.10, 1.00),
    ("horse", "deer", 0.10): (92.68, 99.90, 0, 92.74, 1.60, 1.00),
    ("ship", "frog", 0.05): (92.87, 88.80, 10, 92.61, 0.10, 0.30),
    ("ship", "frog", 0.10): (92.82, 93.70, 3, 92.74, 0.10, 0.30),
    ("truck", "bird", 0.05): (92.52, 97.90, 0, 92.69, 0.00, 0.00),
    ("truck", "bird", 0.10): (92.68, 99.30, 0, 92.45, 0.50, 0.00),
}
#: Table 1: norm of the mean without and with the poisoned images, shift of the mean, and
#: the three largest singular values without and with them.
TABLE_1 = {
    ("airplane", "bird"): (
        78.751,
        78.855,
        6.194,
        (1194.223, 1115.931, 967.933),
        (1613.486, 1206.853, 1129.711),
    ),
    ("automobile", "cat"): (
        89.409,
        89.690,
        7.343,
        (1016.919, 891.619, 877.743),
        (1883.934, 1030.638, 913.895),
    ),
}
#: Table 3: Nat 1, Pois 1, poisons left, Nat 2, Pois 2 in percent, for four backdoors each.
TABLE_3 = {
    ("automobile", "pets", 0.05): (
        (93.99, 95.80, 0, 94.18, 0.30),
        (94.28, 95.00, 0, 94.12, 0.20),
        (94.12, 89.80, 0, 94.18, 0.10),
        (93.97, 94.80, 0, 94.42, 0.00),
    ),
    ("automobile", "pets", 0.10): (
        (94.05, 96.70, 0, 94.27, 0.00),
        (94.13, 99.70, 0, 93.89, 0.00),
        (93.90, 93.40, 0, 94.11, 0.10),
        (94.23, 97.20, 0, 93.96, 0.30),
    ),
    ("pets", "automobile", 0.05): (
        (93.96, 98.65, 0, 94.46, 0.20),
        (94.20, 99.15, 0, 94.36, 0.25),
        (93.89, 94.40, 6, 94.20, 0.20),
        (94.26, 95.60, 5, 94.06, 0.00),
    ),
    ("pets", "automobile", 0.10): (
        (94.18, 99.20, 0, 94.00, 0.20),
        (94.03, 99.55, 0, 94.03, 0.10),
        (94.49, 97.20, 2, 94.49, 0.05),
        (94.20, 98.45, 1, 94.06, 0.15),
    ),
}
#: From so many percent on, of 1,000 images, a run of the paper's counts as captured here.
PAPER_CAPTURED = 88.2
