"""`python -m pypeft_fast` is the command `pypeft-fast`."""

from .cli.main import main_and_exit

if __name__ == "__main__":
    main_and_exit()
