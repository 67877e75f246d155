# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a database, in a form that two databases can be compared by, and what a dump of one leaves out."""

from __future__ import annotations

import hashlib
import re
from typing import Any, Dict, List, Sequence, Tuple

from .._core.command import CommandError, run
from .._core.rows import quote
from .clients import client, major_of
from .errors import PostgresError
from .login import Login

SCHEMA_S = 3600
"""Seconds that a dump of the definitions alone may take."""

# A setting that holds a list of names is stored with its quotes and has to be given name by name
# (variable_is_guc_list_quote in src/bin/pg_dump/dumputils.c).
_LISTS = ("local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries", "temp_tablespaces")

_LOCK_MS = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'lock_timeout'"

# Casts, parentheses and spaces: see schema_of().
_SPELLING = re.compile(
    rb'::(?:"[^"]+"|[a-z_]+\.)*(?:"[^"]+"|character varying|double precision|[a-z_0-9]+)(?:\(\d+(?:,\d+)?\))?(?:\[\])*|[()\s]'
)

_THIS = "(SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())"

# What a dump holds rows or values of, each with the condition on its rows. Members of an extension come with the extension, but for
# those that it marked as the user's own (PostgreSQL, 38.17.3). A materialized view is computed anew, it may be older than its tables.
_RELATIONS = """
    SELECT n.nspname, c.relname, coalesce(marked.condition, '')
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         LEFT JOIN (SELECT m.relation, m.condition FROM pg_catalog.pg_extension e,
                           unnest(e.extconfig, e.extcondition) AS m(relation, condition)) marked ON marked.relation = c.oid
    WHERE c.relkind = %s AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND (marked.relation IS NOT NULL
           OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                          WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid AND d.deptype = 'e'))
    ORDER BY 1, 2
"""

# Between looking a table up and reading it somebody can put a view in its place, which would run their code as this role; pg_dump
# guards itself in the same way (CVE-2024-7348). An older server does not know the setting.
NO_VIEWS = """
    SELECT pg_catalog.set_config(name, %s, false) FROM pg_catalog.pg_settings WHERE name = 'restrict_nonsystem_relation_kind'
"""

# The functions for the text of a row by their names: what t::text does, the owner of the table may define (CREATE CAST), and it would
# run as this role. t.* is the row also where a column is called t.
_ROWS = """
    SELECT count(*), sum(pg_catalog.hashtextextended(pg_catalog.textin(pg_catalog.record_out(t.*)), 0)) FROM ONLY {table} AS t {condition}
"""

# Piece by piece, as a client reads it: holes are zeros, and the server does not need the memory for a whole one. 262144 is INV_READ.
# Each OFFSET 0 keeps what opens and closes one from being planned as if it gave the same for the same arguments.
_LARGE_OBJECTS = """
    SELECT count(DISTINCT oid),
           sum(pg_catalog.hashtextextended(oid || ' ' || at || ' ' || pg_catalog.encode(pg_catalog.lo_get(oid, at, 1048576), 'hex'), 0))
    FROM (SELECT m.oid,
                 (SELECT pg_catalog.lo_lseek64(opened.fd, 0, 2) + 0 * pg_catalog.lo_close(opened.fd)
                  FROM (SELECT pg_catalog.lo_open(m.oid, 262144) AS fd OFFSET 0) opened) AS size
          FROM pg_catalog.pg_largeobject_metadata m OFFSET 0) measured,
         pg_catalog.generate_series(0, greatest(size - 1, 0), 1048576) at
"""

_OWNERS = f"""
    SELECT pg_catalog.pg_get_userbyid(d.refobjid) FROM pg_catalog.pg_shdepend d
    WHERE d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.deptype = 'o' AND d.dbid = {_THIS}
    UNION
    SELECT pg_catalog.pg_get_userbyid(datdba) FROM pg_catalog.pg_database WHERE oid = {_THIS}
    ORDER BY 1
"""

_TABLESPACES = f"""
    SELECT t.spcname FROM pg_catalog.pg_tablespace t JOIN pg_catalog.pg_class c ON c.reltablespace = t.oid WHERE t.spcname !~ '^pg_'
    UNION
    SELECT t.spcname FROM pg_catalog.pg_tablespace t JOIN pg_catalog.pg_database d ON d.dattablespace = t.oid
    WHERE d.oid = {_THIS} AND t.spcname !~ '^pg_'
    ORDER BY 1
"""

# Owners, grantees and whose settings are kept for this database.
_ROLES = f"""
    SELECT r.rolname FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_shdepend d
      ON d.refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND d.refobjid = r.oid
    WHERE d.dbid = {_THIS} OR (d.dbid = 0 AND d.classid = 'pg_catalog.pg_database'::pg_catalog.regclass AND d.objid = {_THIS})
    UNION
    SELECT r.rolname FROM pg_catalog.pg_roles r JOIN pg_catalog.pg_db_role_setting s ON s.setrole = r.oid
    WHERE s.setdatabase = {_THIS}
    UNION
    SELECT pg_catalog.pg_get_userbyid(datdba) FROM pg_catalog.pg_database WHERE oid = {_THIS}
    ORDER BY 1
"""

_PROPERTIES = """
    SELECT pg_catalog.pg_get_userbyid(d.datdba), pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,
           {provider}, {locale}, {icu_rules}, d.datconnlimit, t.spcname, pg_catalog.shobj_description(d.oid, 'pg_database')
    FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace
    WHERE d.datname = pg_catalog.current_database()
"""

_ACL = """
    SELECT DISTINCT CASE a.grantee WHEN 0 THEN '' ELSE pg_catalog.pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable
    FROM pg_catalog.pg_database d, pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
    WHERE d.datname = pg_catalog.current_database() ORDER BY 1, 2, 3
"""

_DATABASE_SETTINGS = """
    SELECT CASE s.setrole WHEN 0 THEN '' ELSE pg_catalog.pg_get_userbyid(s.setrole) END, c.setting
    FROM pg_catalog.pg_db_role_setting s JOIN pg_catalog.pg_database d ON d.oid = s.setdatabase,
         pg_catalog.unnest(s.setconfig) WITH ORDINALITY AS c(setting, position)
    WHERE d.datname = pg_catalog.current_database() ORDER BY 1, c.position
"""

PROVIDERS = {"c": "libc", "i": "icu", "b": "builtin"}
"""``pg_database.datlocprovider`` and what CREATE DATABASE calls it."""


def beside_values(text: str) -> str:
    """Return a part of a statement that is asked with values, where a % would be a place for one."""
    return text.replace("%", "%%")


def ask(connection: Any, statement: str, values: Sequence[Any] = ()) -> List[Tuple[Any, ...]]:
    """Return the rows that a statement gives; none for a statement that gives none."""
    with connection.cursor() as cursor:
        # Without values, a % is a % (psycopg2, "Passing parameters to SQL queries").
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description is not None else []


def rows_of(connection: Any) -> Dict[str, Dict[str, Any]]:
    """Return for each table ``rows`` and ``sum``, by ``schema.name``.

    ``sum`` is the sum of a hash of each row's text: it does not depend on the order of rows, which a restore changes; null
    where there are no rows. The large objects are ``(large objects)``.
    """
    found: Dict[str, Dict[str, Any]] = {}
    ask(connection, NO_VIEWS, ["view, foreign-table"])
    for schema, name, condition in ask(connection, _RELATIONS, ["r"]):
        count, value = ask(connection, _ROWS.format(table=f"{quote(schema)}.{quote(name)}", condition=condition))[0]
        found[f"{schema}.{name}"] = {"rows": count, "sum": None if value is None else str(value)}
    ask(connection, NO_VIEWS, [""])
    count, value = ask(connection, _LARGE_OBJECTS)[0]
    if count:
        found["(large objects)"] = {"rows": count, "sum": str(value)}
    return found


def sequences_of(connection: Any) -> Dict[str, Any]:
    """Return the value of each sequence by ``schema.name``, with true when it was taken and false when it is the next."""
    found = {}
    for schema, name, _condition in ask(connection, _RELATIONS, ["S"]):
        found[f"{schema}.{name}"] = list(ask(connection, f"SELECT last_value, is_called FROM {quote(schema)}.{quote(name)}")[0])
    return found


def sequences_in(connection: Any, image: str) -> Dict[str, Any]:
    """Return what :func:`sequences_of` does, as it stands in a dump of the database that the connection is to.

    A sequence moves on while a dump is made, and no snapshot holds it.
    """
    program = client("pg_restore", major_of(connection.server_version))
    listing = run([program, "--list", image], SCHEMA_S).stdout.splitlines(keepends=True)
    chosen = b"".join(line for line in listing if re.match(rb"\d+; \d+ \d+ SEQUENCE SET ", line))
    if not chosen:
        return {}
    text = run([program, "--use-list=/dev/stdin", "--file=-", image], SCHEMA_S, data=chosen).stdout
    values = re.findall(rb"^SELECT pg_catalog\.setval\('((?:[^']|'')*)', (-?\d+), (true|false)\);$", text, re.MULTILINE)
    found = {}
    for literal, value, called in values:
        # The dump is in the database's encoding, which the server knows best.
        statement = "SELECT pg_catalog.parse_ident(pg_catalog.convert_from(%s, pg_catalog.getdatabaseencoding()))"
        ((schema, name),) = ask(connection, statement, [literal.replace(b"''", b"'")])[0]
        found[f"{schema}.{name}"] = [int(value), called == b"true"]
    return found


def roles_of(connection: Any) -> List[str]:
    """Return the roles that own something in the database, have rights or settings in it, or own the database."""
    return [name for (name,) in ask(connection, _ROLES)]


def owners_of(connection: Any) -> List[str]:
    """Return the roles that own something in the database, or the database."""
    return [name for (name,) in ask(connection, _OWNERS)]


def tablespaces_of(connection: Any) -> List[str]:
    """Return the tablespaces that the database is in, without the server's own."""
    return [name for (name,) in ask(connection, _TABLESPACES)]


def properties_of(connection: Any) -> Dict[str, Any]:
    """Return what belongs to the database that the connection is to, and is not in a dump of it without ``--create``.

    ``owner``, ``encoding``, ``collate``, ``ctype``, ``provider`` (libc, icu or builtin), ``locale`` (of icu or builtin),
    ``icu_rules``, ``tablespace``, ``connection_limit`` (-1: none), ``comment``, ``acl`` (a list of grantee, privilege and grantable; the grantee "" is
    PUBLIC), ``settings`` (a list of role, name and value; the role "" is every one).
    """
    version = connection.server_version
    columns = {
        "provider": "datlocprovider" if version >= 150000 else "'c'",
        "locale": "datlocale" if version >= 170000 else "daticulocale" if version >= 150000 else "NULL",
        "icu_rules": "daticurules" if version >= 160000 else "NULL",
    }
    owner, encoding, collate, ctype, provider, locale, rules, limit, tablespace, comment = ask(connection, _PROPERTIES.format(**columns))[0]
    settings = [(role, *setting.split("=", 1)) for role, setting in ask(connection, _DATABASE_SETTINGS)]
    return {
        "owner": owner,
        "encoding": encoding,
        "collate": collate,
        "ctype": ctype,
        "provider": PROVIDERS[provider],
        "locale": locale,
        "icu_rules": rules,
        "tablespace": tablespace,
        "connection_limit": limit,
        "comment": comment,
        "acl": [list(item) for item in ask(connection, _ACL)],
        "settings": [list(item) for item in settings],
    }


def apply_properties(connection: Any, properties: Dict[str, Any]) -> None:
    """Give a new database the comment, rights, settings and limit that another one had; it has none yet.

    The connection is to the new one: a comment is stored in the encoding of the database that it is written from.
    """
    database = ask(connection, "SELECT pg_catalog.current_database()")[0][0]
    name = quote(database)
    ask(connection, f"COMMENT ON DATABASE {beside_values(name)} IS %s", [properties["comment"]])
    ask(connection, f"ALTER DATABASE {name} CONNECTION LIMIT {int(properties['connection_limit'])}")
    for grantee in ("", properties["owner"]):
        ask(connection, f"REVOKE ALL ON DATABASE {name} FROM {_grantee(grantee)}")
    for grantee, privilege, grantable in properties["acl"]:
        if privilege not in ("CONNECT", "CREATE", "TEMPORARY"):
            raise PostgresError(f"the right {privilege!r} on a database is not known here", database, "Use a newer collection")
        option = " WITH GRANT OPTION" if grantable else ""
        ask(connection, f"GRANT {privilege} ON DATABASE {name} TO {_grantee(grantee)}{option}")
    for role, setting, value in properties["settings"]:
        target = f"ROLE {quote(role)} IN DATABASE {name}" if role else f"DATABASE {name}"
        values = _split_names(value) if setting.lower() in _LISTS else [value]
        parts = ".".join(quote(part) for part in setting.split("."))
        ask(connection, f"ALTER {beside_values(target)} SET {beside_values(parts)} TO {', '.join(['%s'] * len(values))}", values)


def _grantee(role: str) -> str:
    return quote(role) if role else "PUBLIC"


def _split_names(value: str) -> List[str]:
    """Return the names of a list as the server stores it: quoted where that is needed, with commas between."""
    names = re.findall(r'"((?:[^"]|"")*)"|([^,"\s]+)', value)
    return [quoted.replace('""', '"') if quoted else plain for quoted, plain in names] or [""]


def schema_of(connection: Any, login: Login, database: str, snapshot: str = "") -> Dict[str, str]:
    """Return SHA-256 of all definitions, owners and rights in a database, as pg_dump writes them.

    ``text`` is of the text as it is. ``words`` is the same for a database and for one that was loaded from a dump of it, of which
    the server tells some conditions with other casts and parentheses (``x IN ('a', 'b')`` of a varchar is the best known).
    ``objects`` is of their kinds, names and owners alone, which no version of server or client words in its own way.

    :param snapshot: of an open transaction (pg_export_snapshot), empty for now
    """
    argv = [client("pg_dump", major_of(connection.server_version)), "--schema-only", "--no-password"]
    argv.append(f"--lock-wait-timeout={ask(connection, _LOCK_MS)[0][0]}")
    argv.append(f"--encoding={ask(connection, 'SHOW server_encoding')[0][0]}")
    if snapshot:
        argv.append(f"--snapshot={snapshot}")
    try:
        text = run(login.as_user(argv), SCHEMA_S, env=login.environment(database), cwd="/").stdout
    except CommandError as error:
        raise PostgresError(error.what, f"{database} on {login.where}", "Mend what it names and run again") from None
    digests = {"text": hashlib.sha256(), "words": hashlib.sha256(), "objects": hashlib.sha256()}
    objects = []
    for line in text.splitlines(keepends=True):
        # Versions of server and client, and a random key (psql, \restrict), are not the database's.
        if not re.match(rb"-- Dumped |\\(un)?restrict ", line):
            digests["text"].update(line)
            digests["words"].update(_SPELLING.sub(b"", line))
        if re.match(rb"-- Name: .*; Type: .*; Schema: .*; Owner: ", line):
            objects.append(line)
    digests["objects"].update(b"".join(sorted(objects)))
    return {name: digest.hexdigest() for name, digest in digests.items()}


def contents_of(connection: Any, login: Login, database: str, snapshot: str = "") -> Dict[str, Any]:
    """Return all that two databases are compared by: ``tables``, ``sequences``, ``schema`` and ``properties``."""
    return {
        "properties": properties_of(connection),
        "sequences": sequences_of(connection),
        "tables": rows_of(connection),
        "schema": schema_of(connection, login, database, snapshot),
    }


def difference(connection: Any, login: Login, database: str, facts: Dict[str, Any], schema: str = "text") -> str:
    """Say in what a database differs from what was recorded of one; empty when it does not.

    What is cheap is compared first, and the first that differs ends it.

    :param schema: how closely the definitions are compared, see :func:`schema_of`
    """
    return definitions_difference(connection, login, database, facts, schema) or rows_difference(connection, facts)


def definitions_difference(connection: Any, login: Login, database: str, facts: Dict[str, Any], schema: str) -> str:
    """Do the part of :func:`difference` that reads no rows."""
    properties = properties_of(connection)
    wrong = [name for name in sorted(facts["properties"]) if properties.get(name) != facts["properties"][name]]
    if wrong:
        # Applications keep keys in settings, and people write what they like in comments.
        shown = [f"{name} ({properties.get(name)!r})" if name not in ("settings", "comment") else name for name in wrong]
        return f"not as recorded: its {', '.join(shown)}"
    sequences = sequences_of(connection)
    wrong = _unequal(sequences, facts["sequences"])
    if wrong:
        return f"the sequence {wrong[0]} is at {_position(sequences, wrong[0])}, recorded is {_position(facts['sequences'], wrong[0])}"
    if schema_of(connection, login, database)[schema] != facts["schema"][schema]:
        return "its definitions, owners or rights differ"
    return ""


def rows_difference(connection: Any, facts: Dict[str, Any]) -> str:
    """Do the part of :func:`difference` that reads every row."""
    tables = rows_of(connection)
    wrong = _unequal(tables, facts["tables"])
    if not wrong:
        return ""
    here, there = tables.get(wrong[0], {}).get("rows"), facts["tables"].get(wrong[0], {}).get("rows")
    return f"{len(wrong)} tables differ, first {wrong[0]}: " + (f"{here} rows, {there} recorded" if here != there else "other content")


def _position(sequences: Dict[str, Any], name: str) -> str:
    if name not in sequences:
        return "nothing"
    value, called = sequences[name]
    return f"{value}" if called else f"{value}, not taken yet"


def _unequal(found: Dict[str, Any], recorded: Dict[str, Any]) -> List[str]:
    return sorted(name for name in {*found, *recorded} if found.get(name) != recorded.get(name))
