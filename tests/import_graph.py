"""The graph of imports between files, read from their source, with imports in functions and import_module calls."""

import ast
import graphlib
import re

PACKAGE = "pypeft_fast"


def module_parts(path, root):
    """The parts of the dotted name of a file, including "__init__"; kernels/ is pypeft_fast.kernels."""
    parts = path.relative_to(root).with_suffix("").parts
    return (PACKAGE, *parts) if parts[0] == "kernels" else parts


def imported(path, root):
    """(line, absolute dotted name) of every import in a file, also inside functions."""
    parts = module_parts(path, root)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(parts[: -node.level] if node.level else ()), *filter(None, [node.module])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def asked_of_importlib(path, root):
    """A pattern for the names of each import_module("...") in a file; a value in an f-string matches any name."""
    package = ".".join(module_parts(path, root)[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("import_module"):
            continue
        name, pattern = node.args[0], ""
        if isinstance(name, ast.Constant):
            pieces = [name]
        elif isinstance(name, ast.JoinedStr):
            pieces = name.values
        else:
            continue
        for piece in pieces:
            if isinstance(piece, ast.Constant):
                pattern += re.escape(piece.value)
            elif isinstance(piece.value, ast.Name) and piece.value.id == "__package__":
                pattern += re.escape(package)
            else:
                pattern += r"[^.]+"
        yield re.escape(package) + pattern if pattern.startswith(r"\.") else pattern


def import_graph(paths, root):
    """{dotted name of a file: the files that it imports}, among these files. The name of a package is its __init__.py.

    Only names that a file imports count, although an import of a.b also runs a/__init__.py.
    """
    built = {f"{PACKAGE}._C", f"{PACKAGE}._C_cuda"}  # C++ libraries, which import nothing
    names = {path: ".".join(p for p in module_parts(path, root) if p != "__init__") for path in paths}
    known = {*names.values(), *built}
    graph = {}
    for path, name in names.items():
        targets = {_longest_known(dotted, known) for _, dotted in imported(path, root)}
        for pattern in asked_of_importlib(path, root):
            targets |= {other for other in known if re.fullmatch(pattern, other)}
        graph[name] = targets - {name, None}
    return graph


def _longest_known(dotted, known):
    """The longest prefix of a dotted name that is a known file, or None. The last part may be a name in the file."""
    while dotted and dotted not in known:
        dotted = dotted.rpartition(".")[0]
    return dotted or None


def circle(graph):
    """A circle of imports as [a, b, ..., a]: a imports b, and so on; None if there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1][::-1]
    return None
