"""``tangentcl cache``: what is kept of frozen features, whether it is whole, and how to be rid of it."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

ACTIONS = ("list", "verify", "clear")


def add_parser(commands: Any) -> None:
    """The options of ``tangentcl cache``."""
    parser = commands.add_parser("cache", help="features of frozen backbones that are kept on disk")
    parser.add_argument(
        "action",
        choices=ACTIONS,
        help="list: backbones, files and bytes; verify: check every file against its checksum; clear: remove all",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="of the features (default: $TANGENTCL_CACHE/features or ~/.cache/tangentcl/features)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> int:
    """Do it; returns the exit code: 1 if a file is damaged."""
    from tangentcl.nn import FeatureStore

    store = FeatureStore(options.folder)
    if options.action == "clear":
        size = store.clear()
        print(json.dumps({"removed": size}) if options.json else f"removed {size / 1e6:,.1f} MB from {store.folder}")
        return 0
    if options.action == "verify":
        return _verify(store, as_json=options.json)
    entries: list[dict[str, Any]] = [
        {"about": about, "files": files, "bytes": size, "used": used} for about, files, size, used in store.entries()
    ]
    if options.json:
        print(json.dumps({"folder": str(store.folder), "entries": entries}, indent=1))
        return 0
    if not entries:
        print(f"nothing is kept in {store.folder}")
        return 0
    for entry in entries:
        print(_line(entry))
    total = sum(entry["bytes"] for entry in entries)
    print(f"\n{total / 1e6:,.1f} MB in {store.folder}")
    return 0


def _line(entry: dict[str, Any]) -> str:
    about = entry["about"]
    if "backbone" not in about:
        return f"{about['damaged']}: of an unknown backbone, {entry['bytes'] / 1e6:,.1f} MB"
    transform = about["transform"]
    kind = " ".join(str(transform[key]) for key in ("kind", "size", "max_length") if key in transform)
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["used"]))
    rows = entry["bytes"] // (4 * about["width"])
    engine = f" by {about['engine']}" if "engine" in about else ""
    backbone, place = about["backbone"], f"{about['precision']} on {about['device']}{engine}"
    return (
        f"{backbone['name']}, {backbone['pooling']}, {kind}, {place}: "
        f"about {rows:,} samples of width {about['width']}, {entry['bytes'] / 1e6:,.1f} MB, last used {used}"
    )


def _verify(store: Any, *, as_json: bool) -> int:
    damaged = store.verify()
    if as_json:
        print(json.dumps({"damaged": [{"file": str(path), "reason": reason} for path, reason in damaged]}, indent=1))
    else:
        for path, reason in damaged:
            print(f"{path}: {reason}")
        files = sum(files for _, files, _, _ in store.entries())
        note = "; they are computed anew when they are asked for" if damaged else ""
        print(f"{files} files, {len(damaged)} damaged{note}")
    return 1 if damaged else 0
