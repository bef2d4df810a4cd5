"""Deep Confuse: the numbers that the paper reports, all in percent.

What is *printed* stands in the paper; what is *read off* is measured in its plots, with
the error that the comment says.
"""

#: Table 1, printed: mean and deviation of 10 repeats; clean training data, adversarial ones.
TABLE_1: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "mnist": ((99.32, 0.05), (0.25, 0.04)),
    "cifar10": ((77.28, 0.17), (28.77, 2.80)),
    "imagenet2": ((88.5, 2.32), (54.2, 11.19)),
}
#: Table 2, printed: accuracy on the noise alone, that of training and of test images.
TABLE_2: dict[str, tuple[float, float]] = {
    "mnist": (95.62, 95.15),
    "cifar10": (78.57, 72.98),
    "imagenet2": (88.87, 93.00),
}
#: Figure 4, read off to 0.6: accuracy by epsilon; 0.05, which the text names, is not plotted.
FIGURE_4: dict[float, float] = {0.0: 99.0, 0.1: 98.0, 0.15: 97.5, 0.2: 68.2, 0.25: 4.7, 0.3: 0.1}
#: Figure 5, read off to 1 (random labels at 0.95 to 1.5): accuracy by share, one curve an epsilon.
FIGURE_5: dict[float | str, dict[float, float]] = {
    0.3: {
        0.0: 99.5,
        0.1: 99.0,
        0.2: 99.0,
        0.3: 98.9,
        0.4: 98.8,
        0.5: 98.4,
        0.6: 97.2,
        0.7: 94.4,
        0.8: 86.2,
        0.9: 67.2,
        1.0: 0.3,
    },
    0.4: {
        0.0: 99.5,
        0.1: 99.0,
        0.2: 99.0,
        0.3: 98.5,
        0.4: 97.8,
        0.5: 96.6,
        0.6: 92.9,
        0.7: 83.3,
        0.8: 65.0,
        0.9: 36.3,
        1.0: 0.2,
    },
    "random labels": {
        0.0: 99.5,
        0.1: 98.7,
        0.2: 98.7,
        0.3: 98.3,
        0.4: 98.0,
        0.5: 97.5,
        0.6: 96.9,
        0.7: 96.3,
        0.8: 94.0,
        0.9: 87.0,
        0.95: 75.5,
        1.0: 10.0,
    },
}
#: Figure 6, printed: accuracy after training on clean and on adversarial images, MNIST.
FIGURE_6: dict[str, tuple[float, float]] = {
    "original": (99.32, 0.25),
    "small": (99.15, 0.29),
    "large": (99.17, 0.20),
    "random forest": (97.23, 1.80),
    "support vector machine": (98.24, 0.52),
}
#: Figure 7, printed: as Figure 6. The poster prints 26.3 for resnet18 on CIFAR-10, not 16.3.
FIGURE_7: dict[str, dict[str, tuple[float, float]]] = {
    "cifar10": {
        "vgg16": (92.6, 22.8),
        "vgg19": (92.4, 20.5),
        "resnet18": (93.0, 16.3),
        "resnet50": (93.6, 22.6),
        "densenet121": (95.0, 27.4),
    },
    "imagenet2": {
        "vgg16": (96.0, 52.0),
        "vgg19": (97.0, 49.0),
        "resnet18": (94.0, 54.0),
        "resnet50": (92.0, 65.0),
        "densenet121": (98.0, 65.0),
    },
}
#: Figure 8, read off to 1 (MNIST up to iteration 8 to 2): accuracy by iteration, unit not stated.
FIGURE_8: dict[str, dict[str, dict[int, float]]] = {
    "mnist": {
        "train": {
            0: 45.0,
            1: 54.0,
            2: 58.0,
            3: 63.0,
            4: 67.5,
            5: 71.0,
            6: 74.5,
            7: 77.5,
            8: 80.0,
            10: 84.5,
            12: 87.5,
            15: 91.0,
            20: 94.0,
            25: 95.5,
            30: 96.0,
            40: 97.3,
            50: 98.1,
        },
        "test": {
            0: 31.0,
            1: 33.5,
            2: 24.0,
            3: 16.5,
            4: 10.0,
            5: 5.5,
            6: 2.5,
            7: 1.5,
            8: 1.0,
            10: 0.7,
            12: 0.6,
            15: 0.5,
            20: 0.3,
            25: 0.3,
            30: 0.3,
            40: 0.3,
            50: 0.3,
        },
    },
    "cifar10": {
        "train": {0: 41.3, 10: 76.6, 20: 88.2, 30: 89.8, 40: 90.6, 50: 90.8, 60: 91.3},
        "test": {0: 19.2, 10: 23.8, 20: 17.1, 30: 16.7, 40: 19.0, 50: 17.3, 60: 15.8},
    },
    "imagenet2": {
        "train": {
            0: 76.8,
            10: 86.7,
            20: 85.6,
            30: 81.5,
            40: 91.4,
            50: 89.1,
            60: 91.4,
            70: 92.7,
            80: 93.8,
            90: 93.7,
            100: 93.8,
            110: 93.7,
        },
        "test": {
            0: 79.0,
            10: 80.0,
            20: 62.0,
            30: 68.0,
            40: 63.0,
            50: 71.0,
            60: 65.0,
            70: 59.0,
            80: 54.0,
            90: 56.0,
            100: 52.0,
            110: 53.0,
        },
    },
}
#: Section 5.4 with Figure 10, printed: accuracy of the label-specific attack, and deviation.
LABEL_MAP_ACCURACY: tuple[float, float] = (1.48, 0.21)
#: Section 5.4 with Figure 10, printed: test images called the wished-for label, and deviation.
LABEL_MAP_HIT_RATE: tuple[float, float] = (79.7, 0.38)
#: Figure 10, read off to 3: the same, of each class by itself.
LABEL_MAP_BY_CLASS: tuple[float, ...] = (87, 91, 77, 72, 84, 80, 82, 81, 79, 84)
#: Section 5.4, printed: the same share where the noise is for any wrong label.
HIT_RATE_WITHOUT_MAP: float = 0.0
