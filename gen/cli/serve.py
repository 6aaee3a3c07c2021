"""`fewstep serve`: pictures over HTTP for many clients at once; `gen.serve` does the work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.groups import grouped
from gen.cli.options import Device, Dtype, LoraDir, PartOptions, Quiet
from gen.cli.output import say
from gen.cli.spoken import SpokenCommand
from gen.io.extras import install


def add(app: typer.Typer) -> None:
    """Make it part of the program."""
    app.command(cls=SpokenCommand)(grouped(serve))


def serve(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]MODEL",
            help="default, fast, a folder, a checkpoint's file or a hub id; repeatable. [default: default and fast]",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; any but this machine needs --api-key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 chooses a free one.", min=0, max=65535)] = 8188,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Of which every request needs one; repeatable.", envvar="FEWSTEP_API_KEY")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Keys, one a line.")] = None,
    lora_dir: LoraDir = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Have every picture here before it is sent.")] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of open models, such as 8GiB. [default: no limit]")
    ] = None,
    max_rows: Annotated[int, typer.Option(help="Of a forward pass; a guided picture has two.", min=1, max=1024)] = 16,
    max_queue: Annotated[int, typer.Option(help="Pictures that may wait.", min=1, max=100_000)] = 64,
    max_pixels: Annotated[int, typer.Option(help="Of a picture.", min=64)] = 4_194_304,
    max_steps: Annotated[int, typer.Option(help="Of a picture.", min=1, max=1000)] = 200,
    max_pictures: Annotated[int, typer.Option(help="Of a request.", min=1, max=10_000)] = 16,
    max_work: Annotated[
        float,
        typer.Option(metavar="PICTURES", help="Of a request, in pictures of the model's own size in 20 guided steps.", min=0.1),
    ] = 256.0,
    timeout: Annotated[float, typer.Option(help="Seconds in which a request is done.", min=0.1)] = 600.0,
    grace: Annotated[float, typer.Option(help="Seconds for what runs when the server stops.", min=0)] = 30.0,
    allow_host: Annotated[list[str] | None, typer.Option(help="Another name that the server goes by; repeatable.")] = None,
    cors: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="Web pages that may ask, such as https://a.b; repeatable.")
    ] = None,
    batch_invariant: Annotated[
        bool | None,
        typer.Option(
            "--batch-invariant/--no-batch-invariant", help="The same picture to the bit however busy. [default: on a CPU]"
        ),
    ] = None,
    controlnet: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FOLDER", help="A ControlNet or T2I-Adapter that requests may name; repeatable."),
    ] = None,
    ip_adapter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FILE", help="An IP-Adapter that requests may name; repeatable.")
    ] = None,
    ip_adapter_encoder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Their vision encoder. [default: image_encoder beside each]")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Draw in replicas on Ray Serve: local, auto, HOST:PORT or ray://HOST:PORT."),
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Replicas. [default: one a GPU, or all cores]")] = None,
    cpus_per_actor: Annotated[int, typer.Option(help="Cores, and threads, of each.")] = 1,
    parts: PartOptions,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> int:
    """Serve pictures over HTTP, as OpenAI's and AUTOMATIC1111's servers do (docs/serve.md)."""
    from gen.pipeline.scenes import lora_files
    from gen.serve.http.settings import ServerSettings, read_bytes_count, read_keys, read_named_paths

    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=read_keys(api_key or [], api_key_file),
        allowed_hosts=tuple(allow_host or ()),
        origins=tuple(cors or ()),
        save=None if save is None else writable_folder(save),
        max_pixels=max_pixels,
        max_steps=max_steps,
        max_pictures=max_pictures,
        timeout=timeout,
        grace=grace,
        max_work=max_work,
        batch_invariant=batch_invariant,
        controlnets=read_named_paths("--controlnet", controlnet or []),
        ip_adapters=read_named_paths("--ip-adapter", ip_adapter or []),
        ip_adapter_encoder=ip_adapter_encoder,
    )
    budget = None if memory is None else read_bytes_count(memory)
    run_server = server_program()
    from gen.serve.start import check_there, make_engine

    arguments: dict[str, Any] = {**parts.arguments(), "device": device, "dtype": dtype}
    models, tell = model or ["default", "fast"], (lambda text: None) if quiet else say
    limits: dict[str, Any] = {"memory": budget, "max_rows": max_rows, "max_queue": max_queue}
    limits["adapters"] = {} if lora_dir is None else dict(lora_files(lora_dir))
    if ray is None:
        if actors is not None or cpus_per_actor != 1:
            raise ValueError("--actors and --cpus-per-actor are for Ray; give --ray local too, or leave them out.")
        return run_server(make_engine(models, arguments, **limits), settings, tell, quiet)
    from gen.batch.ray_pool import RayOptions, cluster
    from gen.serve.replicas import ReplicatedEngine

    names, options = check_there(models, arguments, budget), RayOptions(ray, actors, cpus_per_actor)
    with cluster(options) as module:
        return run_server(ReplicatedEngine(module, names, models, arguments, options, **limits), settings, tell, quiet)


def server_program() -> Callable[..., int]:
    """`gen.serve.http.server.run_server`; ValueError where a package of the extra is missing."""
    try:
        import python_multipart  # noqa: F401  (which forms need)

        from gen.serve.http.server import run_server
    except ModuleNotFoundError as error:
        raise ValueError(f"`fewstep serve` needs the package {error.name}, of the extra serve: {install('serve')}.") from None
    return run_server


def writable_folder(path: Path) -> Path:
    """The folder, made if it is not there; ValueError where no file can be written to it."""
    import tempfile

    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"--save {path}: {error.strerror}; give a folder that can be written to.") from None
    return path
