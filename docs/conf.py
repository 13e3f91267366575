"""The documentation site: `make docs` builds it without a network."""

import importlib.metadata
import os
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

# Notebooks are small: compiling well would cost them more than running well.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

project = "parity_jax"
author = "the parity_jax authors"
version = release = importlib.metadata.version("parity-jax")
extensions = ["myst_nb", "autodoc2"]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "sphinx_book_theme"
html_title = "parity_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["../results"]  # report.html, and the figures that it shows
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": False}
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 1200  # of a cell, on a machine that does much else
nb_merge_streams = True
nb_render_markdown_format = "myst"

# The API: what experiments, own code and notebooks import.
autodoc2_packages = [{"path": "../parity_jax", "auto_mode": True}]
autodoc2_output_dir = "reference/api"
autodoc2_render_plugin = "myst"
autodoc2_hidden_objects = ["undoc", "private", "inherited", "dunder"]
autodoc2_skip_module_regexes = [
    r"parity_jax\.(blocks|cli|config|gradient|mesh|platform|responses)(\..*)?",
    r"parity_jax\.runs\.(?!directory|execute|lineage|resolve).*",
    r"parity_jax\.analysis\.(?!claims|legend|overlays|plots|results|scores|sweeps).*",
    r"parity_jax\.(models\.(kernels|huggingface\.(?!folder).*)|.*contract)",
    r".*\._.*",
]
# Annotations name types of other packages, whose sites are not asked.
nitpick_ignore_regex = [(r"py:(class|obj|exc)", r".*")]


def mathml(writer: Any, node: Any) -> None:
    """A formula as MathML, which browsers draw without a script."""
    is_block = node.tagname == "math_block"
    formula = convert(node.astext(), display="block" if is_block else "inline")
    text = f'<div class="formula">{formula}</div>' if is_block else formula
    writer.body.append(text)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Formulas need no network either."""
    app.add_html_math_renderer("mathml", (mathml, None), (mathml, None))
