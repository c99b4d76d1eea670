"""Libraries print no notices: they are made calm before they are imported."""

import ast
from pathlib import Path

import pypeft_fast.cli


def test_a_command_calms_the_libraries_before_it_imports_them():
    calming, early = [], []
    for path in sorted(Path(pypeft_fast.cli.__file__).parent.glob("*.py")):
        for function in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)):
            nodes = list(ast.walk(function))
            calls = [
                its.lineno for its in nodes if isinstance(its, ast.Call) and ast.unparse(its.func) == "calm_libraries"
            ]
            imports = [its.lineno for its in nodes if isinstance(its, (ast.Import, ast.ImportFrom))]
            if calls:
                calming.append(path.stem)
                early += [f"{path.name}: {function.name}"] if min(imports, default=10**9) < calls[0] else []
    assert {"finetune", "finetune_many", "merge", "plan", "advise"} <= set(calming) and not early
