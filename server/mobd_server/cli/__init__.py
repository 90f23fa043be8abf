"""The command line. Each command imports what it needs when it runs, so that all of them answer quickly."""

# ruff: noqa: PLC0415 see above

from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="mobd",
    help="Holds durable teams of agents: the server, and a look at it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[
    Path | None, typer.Option("--config", readable=False, help="A TOML file with settings; also MOBD_CONFIG.")
]
tokens = typer.Typer(help="The tokens by which a server knows its callers.", no_args_is_help=True)
app.add_typer(tokens, name="token")

Target = Annotated[
    str | None,
    typer.Option("--target", envvar="MOBD_TARGET", help="The server's address.", show_default="localhost:7780"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object in a line.")]


@app.callback(invoke_without_command=True)
def _mobd(
    *, version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False
) -> None:
    if version:
        typer.echo(f"mobd {version_of('mobd')}")
        raise typer.Exit


@app.command()
def serve(
    config: ConfigFile = None,
    listen: Annotated[str | None, typer.Option(help="Address and port; also MOBD_LISTEN.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(readable=False, help="Where SQLite's file is; also MOBD_DATA_DIR.")
    ] = None,
) -> None:
    """Run a server. SIGTERM drains it; a second signal ends it at once."""
    from mobd_server.cli.serving import serve

    serve(config, listen=listen, data_dir=data_dir)


@app.command()
def migrate(config: ConfigFile = None) -> None:
    """Bring the database to the schema of this version."""
    from mobd_server.cli.serving import migrate

    migrate(config)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(readable=False, help="The copy; it must not be there yet.")],
    config: ConfigFile = None,
) -> None:
    """Copy the SQLite database, also while a server runs. The copy's logs have new names."""
    from mobd_server.cli.serving import backup

    backup(config, file)


@app.command("new-log")
def new_log(config: ConfigFile = None) -> None:
    """Give the logs of a database that was copied otherwise new names: cursors of the original are refused then."""
    from mobd_server.cli.serving import new_log

    new_log(config)


@app.command("check-config")
def check_config(config: ConfigFile = None) -> None:
    """Check the settings and show each of them, with what it is for."""
    from mobd_server.cli.settings import check_config

    check_config(config)


@app.command()
def schema() -> None:
    """Print the JSON Schema of definitions."""
    from mobd_server.cli.settings import schema

    schema()


@tokens.command("new")
def new_token(
    principal: Annotated[str, typer.Argument(help="Who calls with it; written into every event that it causes.")],
    append: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Add its line to this tokens file, made if it is not there.")
    ] = None,
) -> None:
    """Make a token and print it, once; the file has only its hash. A server reads the file at start and on SIGHUP."""
    from mobd_server.cli.settings import new_token

    new_token(principal, append)


@app.command()
def healthcheck(target: Target = None) -> None:
    """Exit with 0 if the server serves, with 1 if not."""
    from mobd_server.cli.asking import ask_health

    ask_health(target)


@app.command()
def ps(
    mob: Annotated[str | None, typer.Argument(help="A mob: show its members and agents.")] = None,
    *,
    target: Target = None,
    json: Json = False,
) -> None:
    """Show mobs, or the members and agents of one."""
    from mobd_server.cli.asking import show_mobs

    show_mobs(target, mob, as_json=json)


@app.command()
def send(
    mob: Annotated[str, typer.Argument(help="The mob.")],
    member: Annotated[str, typer.Argument(help="The member.")],
    text: Annotated[str, typer.Argument(help="What to deliver; - reads it from standard input.")],
    *,
    wait: Annotated[bool, typer.Option(help="Wait for the output of the run that consumes it.")] = True,
    input_id: Annotated[str | None, typer.Option(help="Its name; delivering the same name again is harmless.")] = None,
    target: Target = None,
) -> None:
    """Deliver a text to a member and print what its agent makes of it."""
    from mobd_server.cli.asking import send_input

    send_input(target, mob, member, text, input_id, wait=wait)


@app.command()
def events(
    mob: Annotated[str, typer.Argument(help="The mob.")],
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens.")] = False,
    after: Annotated[int, typer.Option(help="Begin after this cursor.")] = 0,
    target: Target = None,
    json: Json = False,
) -> None:
    """Print the log of a mob."""
    from mobd_server.cli.asking import follow_events

    follow_events(target, mob, after, follow=follow, as_json=json)
