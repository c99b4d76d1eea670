"""The options of a config file that an option on the command line makes meaningless."""

from ..finetune.adapters.methods import ALL_LINEAR, DEFAULTS, METHODS


def outdated(found: dict, given: dict[str, str]) -> set[str]:
    """The names of the options in `found`, of a file, that do not go with the given options and are not given.

    The file may be the finetune.json of a run, which has the default of each option of its method and its schedule.
    """
    gone = set()
    if "epochs" in given:
        gone.add("max_steps")
    if given.get("schedule") == "constant" or "schedule" in given and found.get("warmup") == 0:
        gone.add("warmup")
    method, before = given.get("method"), found.get("method", "lora")
    if "adapter" in given:
        gone |= {"method", "target_modules", *DEFAULTS}
    elif method in METHODS and method != before:
        gone |= set(DEFAULTS) - set(METHODS[method].options)
        if found.get("target_modules") == "all-linear" and method not in ALL_LINEAR:
            gone.add("target_modules")
        if before in METHODS and found.get("learning_rate") == METHODS[before].learning_rate:
            gone.add("learning_rate")
    return gone - given.keys()


def values_in(args: list[str], options: dict) -> dict[str, str]:
    """{dest: text} of the options among these arguments; options: argparse's actions by option."""
    found = {}
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        name, is_one, value = arg.partition("=")
        if name in options:
            found[options[name].dest] = value if is_one else following
    return found
