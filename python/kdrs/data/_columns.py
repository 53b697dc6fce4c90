"""Which column holds what: by statement, by the usual names, and otherwise not at all: kdrs asks."""

from __future__ import annotations

from collections.abc import Sequence

from kdrs.data._dates import looks_dated
from kdrs.data._options import Options
from kdrs.errors import ConfigError, DataError, nearest, shown

ROLES = ("user", "item", "rating", "timestamp")
NAMES = {
    "user": ("user", "user_id", "userid", "uid", "users", "user id", "reviewerid", "visitorid", "customer_id"),
    "item": (
        *("item", "item_id", "itemid", "iid", "items", "item id", "movieid", "movie_id", "asin", "parent_asin"),
        *("product_id", "productid", "book_id", "bookid", "business_id", "artist_id", "artistid", "track_id"),
    ),
    "rating": ("rating", "ratings", "stars", "overall", "score"),
    "timestamp": ("timestamp", "timestamps", "time", "unixreviewtime", "ts", "datetime", "date"),
}
"""Column names, in lower case, that are recognised where none is stated."""

NO_COLUMN = "none"
"""Stated for rating or timestamp: no column is taken for it."""


def usual(name: str) -> str:
    """A column name as it is compared with ``NAMES``."""
    return name.strip().lower()


def named_columns(source: str, names: Sequence[str], options: Options, sample: Sequence[str] = ()) -> dict[str, int]:
    """The place of each role's column among named ones: as stated, else the only one with a usual name.

    Raises ``DataError`` showing the columns (and ``sample``, their first values) where user or item has none, and
    where a role could be in several.
    """
    found = f"columns found: {_listed(names)}"
    held = f"; the first row holds {_listed(names, sample)}" if sample else ""
    stated = {role: getattr(options, role) for role in ROLES}
    columns = {
        role: _stated_place(source, role, value, names, len(names), found, held)
        for role, value in stated.items()
        if value is not None and not _left_out(role, value, names)
    }
    taken = set(columns.values())
    for role in ROLES:
        if stated[role] is not None:
            continue
        places = [place for place, name in enumerate(names) if usual(name) in NAMES[role] and place not in taken]
        optional = role in ("rating", "timestamp")
        if len(places) > 1:
            several = ", ".join(f"{shown(names[place], 30)} ({place})" for place in places)
            raise DataError(
                f"{source}: several columns could be the {role}: {several}; {found}",
                f"name one by name or place: --{role} {places[0]}" + (f", or --{role} none" if optional else "") + held,
            )
        if places:
            columns[role] = places[0]
        elif not optional:
            raise DataError(f"{source}: no {role} column; {found}", f"name it with --{role} COLUMN{held}")
    return _distinct(source, columns)


def bare_columns(
    source: str, sample: Sequence[str], options: Options, no_header: str = "--no-header "
) -> dict[str, int]:
    """The place of each role's column where columns have no names: as stated; of two columns, user and item.

    ``sample`` is the first row. Raises ``DataError`` showing it where user or item is not certain.
    """
    found = f"{len(sample)} columns found, in row 1: {_listed([str(place) for place in range(len(sample))], sample)}"
    stated = {role: getattr(options, role) for role in ROLES}
    columns = {
        role: _stated_place(source, role, value, None, len(sample), found, "")
        for role, value in stated.items()
        if value is not None and not _left_out(role, value, ())
    }
    lacking = [role for role in ("user", "item") if role not in columns]
    free = [place for place in range(len(sample)) if place not in columns.values()]
    if lacking:
        if len(sample) != 2 or len(free) != len(lacking) or any(looks_dated(value) for value in sample):
            raise DataError(
                f"{source}: without names, nothing tells which column is the {' and which the '.join(lacking)}; {found}",
                f"name the places, for example {no_header}--user 0 --item 1 --rating 2 --timestamp 3 "
                "(rating and timestamp only where there are some)",
            )
        columns.update(zip(lacking, free, strict=True))
    return _distinct(source, columns)


def _left_out(role: str, value: str | int, names: Sequence[str]) -> bool:
    if value != NO_COLUMN or value in names:
        return False
    if role in ("user", "item"):
        raise ConfigError(f"{role} column none", f"every row has a user and an item: name it with --{role} COLUMN")
    return True


def _stated_place(
    source: str, role: str, stated: str | int, names: Sequence[str] | None, n_fields: int, found: str, held: str
) -> int:
    if names is not None and stated in names:
        places = [place for place, name in enumerate(names) if name == stated]
        if len(places) > 1:
            raise DataError(
                f"{source}: column {shown(stated)} comes {len(places)} times; {found}",
                f"give its place: --{role} {places[0]}{held}",
            )
        return places[0]
    if isinstance(stated, int) or (stated.isascii() and stated.isdigit()):
        if not 0 <= int(stated) < n_fields:
            raise DataError(
                f"{source}: no column {shown(str(stated))} for the {role}; {found}",
                f"name it with --{role} COLUMN: a name, or a place from 0 to {n_fields - 1}{held}",
            )
        return int(stated)
    hint = "the columns have no names: give places from 0, or say --header"
    if names is not None:
        padded = any(name != name.strip() and name.strip() == stated for name in names)
        hint = "there are blanks around the name: --strip takes them off" if padded else nearest(stated, names)
    raise DataError(f"{source}: no column {shown(stated)} for the {role}; {found}", hint + held)


def _distinct(source: str, columns: dict[str, int]) -> dict[str, int]:
    if len(set(columns.values())) < len(columns):
        raise ConfigError(f"{source}: one column is named for two roles: {columns}", "name a column for each role")
    return {role: columns[role] for role in ROLES if role in columns}


def _listed(names: Sequence[str], sample: Sequence[str] = ()) -> str:
    most = 12
    parts = [
        shown(name, 30) + (f" = {shown(sample[place], 30)}" if place < len(sample) else "")
        for place, name in enumerate(names[:most])
    ]
    return ", ".join(parts) + (f" and {len(names) - most:,} more" if len(names) > most else "")
