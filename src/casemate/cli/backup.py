"""`casemate backup`: save a home as one file."""

from __future__ import annotations

from pathlib import Path

import click

from casemate.cli.output import emit, human_bytes, json_option, progress


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--without-keys", is_flag=True, help="Leave the keystore out: you keep keystore.json and its secret.")
@json_option
def command(*, file: Path, without_keys: bool, as_json: bool) -> None:
    """Save the home as FILE, also while the device runs.

    Models stay encrypted; of the keystore only the recovery slot goes along, so the file is worth nothing without the
    recovery code. Keep the digest it prints: `casemate restore --sha256` checks it.
    """
    from casemate import config
    from casemate.cli.passphrase import sources
    from casemate.device import backup
    from casemate.device.home import Home

    home = Home(config.home_path()).open()
    saved = backup.save(home, file, None if without_keys else sources(home), progress=progress)
    emit(
        backup.describe(saved),
        as_json=as_json,
        text=lambda: (
            f"saved    {saved.file}  {human_bytes(saved.bytes)}, {saved.files} files\n"
            f"models   {', '.join(saved.models) or 'none'}\n"
            f"keys     {'opened by the recovery code only' if saved.keys == 'recovery' else 'not included'}\n"
            f"sha256   {saved.sha256}"
        ),
    )
