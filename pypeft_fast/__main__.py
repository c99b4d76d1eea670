"""`python -m pypeft_fast` is the command `pypeft-fast`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
