"""`edgeft sign`: a result -> a signature file of the OpenSSF Model Signing format beside it."""

from __future__ import annotations

from pathlib import Path

import click

from edgeft.cli._config import configurable
from edgeft.cli._options import json_option, print_json


@click.command("sign")
@click.argument("results", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--key", type=click.Path(path_type=Path), required=True,
              help="Private key (PEM) of the curve P-256, P-384 or P-521.")  # fmt: skip
@click.option(
    "--overwrite", is_flag=True, help="Replace a signature of other files or another key."
)
@json_option
@configurable
def command(results: tuple[Path, ...], key: Path, overwrite: bool, as_json: bool) -> None:
    """Sign artifacts, adapters or bases with their manifests: who has the public key can verify them.

    The files are hashed first, and damaged ones are not signed. The signature is NAME.gguf.sig beside a
    file, and model.sig in a folder. A key with a password needs it in EDGEFT_KEY_PASSWORD.

    \b
    openssl ecparam -name prime256v1 -genkey -noout -out signer.pem
    openssl ec -in signer.pem -pubout -out signer.pub
    edgeft sign out/q4_k_m.gguf --key signer.pem
    edgeft verify out/q4_k_m.gguf --key signer.pub
    """
    from edgeft.report.signature import sign

    paths = {path: sign(path, key, overwrite) for path in results}
    if as_json:
        print_json({"signatures": {str(path): str(made) for path, made in paths.items()}})
    else:
        for made in paths.values():
            click.echo(made)
