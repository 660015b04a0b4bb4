"""Sphinx's settings. `build_site.py` runs it; neither the build nor the pages need the network."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "drifting_jax"
html_title = "drifting_jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "docstrings", "mathml"]

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False
html_use_index = False  # the search finds names, and these lists do not fit a phone
html_domain_indices = False
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4  # those of GitHub

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
add_module_names = False
smartquotes_action = "D"  # dashes alone: quotation marks in docstrings belong to Python
default_role = "literal"  # one backtick in a docstring is code
