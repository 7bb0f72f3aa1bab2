"""What pydantic found, in words that name the key and the nearest known one."""

from __future__ import annotations

from typing import Any, get_args

from msd.config.base import Section, nearest


def describe(error: Any, root: type[Section]) -> str:
    """One line for one pydantic error of ``root``, with the nearest known key for an unknown one."""
    # pydantic puts the tag of a union ("file", "students") into the location; a reader never wrote it
    location = [str(x) for x in error["loc"]]
    if error["type"] == "extra_forbidden":
        model: Any = root
        path: list[str] = []
        for step in location[:-1]:
            model, written = _descend(model, step)
            path += [step] if written else []
        known = list(model.model_fields) if isinstance(model, type) and issubclass(model, Section) else []
        return f"{'.'.join([*path, location[-1]])}: unknown key{nearest(location[-1], known)}"
    model, path = root, []
    for step in location:
        model, written = _descend(model, step)
        path += [step] if written else []
    return f"{'.'.join(path) or 'the file'}: {error['msg']}"


def _descend(annotation: Any, step: str) -> tuple[Any, bool]:
    """The type found one step deeper, and whether the step is a key that a user wrote (not a union's tag)."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        field = annotation.model_fields.get(step)
        return (_unwrap(field.annotation), True) if field else (None, True)
    for member in get_args(annotation):
        member = _unwrap(member)
        if isinstance(member, type) and issubclass(member, Section):
            for tag in ("source", "kind", "model", "architecture"):
                field = member.model_fields.get(tag)
                if field is not None and step in get_args(field.annotation):
                    return member, False
    arguments = get_args(annotation)
    if arguments:  # dict[str, X] or list[X]
        return _unwrap(arguments[-1]), True
    return None, True


def _unwrap(annotation: Any) -> Any:
    """Drop ``Annotated`` and ``| None``."""
    while hasattr(annotation, "__metadata__"):
        annotation = annotation.__origin__
    rest = [a for a in get_args(annotation) if a is not type(None)]
    if len(rest) == 1 and type(None) in get_args(annotation):
        return _unwrap(rest[0])
    return annotation
