"""The documentation site: Sphinx reads this folder's Markdown. Build it with tools/docs.sh.

The pages load nothing from other hosts: formulas become MathML and diagrams SVG when the site is built
(_ext/static_pages.py). The same files are readable on GitHub.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import fastdc  # noqa: E402

project = "fastdc"
author = "fastdc contributors"
copyright = "fastdc contributors"  # noqa: A001 - Sphinx's name
version = release = fastdc.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "static_pages",
    "public_names",
]
exclude_patterns = ["_build", "_static", "_ext"]
# ref.python: a short name in a type, such as n, may be that of several attributes; the first one is linked.
suppress_warnings = ["ref.python"]

# Markdown as on GitHub: anchors of headings, $formulas$, mermaid fences.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

# The notebook runs at every build, and an error in it fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

# The API: signatures with short types, one argument per line if they are long.
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "exclude-members": "__new__"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
add_module_names = False

html_theme = "furo"
html_title = f"fastdc {version}"
html_static_path = ["_static"]
html_css_files = ["fastdc.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True
