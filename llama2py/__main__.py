"""``python -m llama2py``."""

import sys

from .cli import main

sys.exit(main())
