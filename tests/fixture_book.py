"""A tiny book with one of everything that the real one has, below the real _config.yml."""

import shutil
from pathlib import Path

import nbformat

CONTENTS = """
format: jb-book
root: book/intro
parts:
  - caption: A part
    chapters:
      - file: book/theory
      - file: notebooks/chapter/figures
      - file: book/references
"""

PAGES = {
    "intro.md": """
# A tiny book

It leads to {doc}`the theory <theory>`, to [its notebook](../notebooks/chapter/figures.ipynb) and to
[a heading](theory.md#the-score).

:::{list-table} A table far wider than a telephone
:header-rows: 1

* - exhibit
  - reported
  - measured
  - interval
  - a column with a rather long heading
  - another column with a rather long heading
* - Table 1
  - 0.1
  - 0.1
  - 0.0 to 0.2
  - AVeryLongWordThatCannotBeBrokenAnywhere
  - AnotherVeryLongWordThatCannotBeBrokenAnywhere
:::
""",
    "theory.md": r"""
# Theory

## The score

As in {cite}`tran2018`, with $\tau_i = \langle h_i - \bar h, v\rangle^2$ and

$$
\boldsymbol{v} = \arg\max_{\lVert u \rVert = 1} \sum_i \langle h_i - \bar h, u\rangle^2,
\qquad \mathcal{L}, \mathbb{R}^d
$$ (eq:score)

which equation {eq}`eq:score` defines.
""",
    "references.md": "# References\n\n```{bibliography}\n```\n",
    "references.bib": """
@inproceedings{tran2018,
  title = {Spectral Signatures in Backdoor Attacks},
  author = {Tran, Brandon and Li, Jerry and Madry, Aleksander},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2018},
}
""",
}

SLIDER = """
import matplotlib.pyplot as plt

from poisonkit import plots

frames = []
for height in (1, 2, 3):
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.bar([0], [height])
    axes.set_ylim(0, 4)
    frames.append((f"height {height}", figure))
plots.slider(frames, label="height")
""".strip()


def write(root: Path, *, checkout: Path) -> None:
    """Write the book below `root`, with the settings and assets of the `checkout`."""
    shutil.copytree(checkout / "book" / "assets", root / "book" / "assets")
    shutil.copy2(checkout / "_config.yml", root)
    (root / "_toc.yml").write_text(CONTENTS, encoding="utf-8")
    for name, text in PAGES.items():
        (root / "book" / name).write_text(text.lstrip(), encoding="utf-8")
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# Figures\n\nThe score is $\\tau$, of {cite}`tran2018`."),
        new.new_code_cell('profile = "small"', metadata={"tags": ["parameters"]}),
        new.new_code_cell(SLIDER),
        new.new_code_cell("figure, axes = plt.subplots(figsize=(2, 1))\naxes.plot([0, 1]);"),
        new.new_code_cell("import pandas\npandas.DataFrame({'a column': [1], 'another': [2]})"),
    ]
    path = root / "notebooks" / "chapter" / "figures.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(new.new_notebook(cells=cells), path)
