"""Errors say `--steps`, not `steps`: what was typed."""

from __future__ import annotations

import click
import pytest

from kamado.cli.main import cli
from kamado.cli.naming import by_flags, flags_of

from .conftest import Kamado


def flags(command: str = "run", **typed: tuple[str, ...]) -> dict[str, str]:
    found = cli.get_command(click.Context(cli), command)
    assert found is not None
    ctx = click.Context(found)
    ctx.params = dict(typed)
    return flags_of(ctx)


NAMED = [
    ("image does not exist; check the path", "--image does not exist; check the path"),
    ("audio[1] must be text, not int", "--audio[1] must be text, not int"),
    ("control_scale: give 2 numbers, not 3", "--control-scale: give 2 numbers, not 3"),
    ("adapters: at most 32 can be used at once", "--adapter: at most 32 can be used at once"),
    ("strength says how much; it needs a picture (image)", "--strength says how much; it needs a picture (--image)"),
    ("frames and seconds both say how long", "--frames and --seconds both say how long"),
    (
        "frame_index is about an input; give image, video or last_image too",
        "frame_index is about an input; give --image, --video or --last-image too",
    ),
    (
        "X takes no mask; it takes guidance, latents, seed",
        "X takes no --mask; it takes --guidance, --option latents, --seed",
    ),
    ("n: task=decode draws nothing", "--n: --task=decode draws nothing"),
    ("give a music model prompt or notes", "give a music model PROMPT or --notes"),
    (
        "kv_dtype 'int8' is for pages; leave kv_dtype (--kv-dtype) out",
        "--kv-dtype 'int8' is for pages; leave --kv-dtype out",
    ),
    (
        "an IP-Adapter needs a picture: give ip_adapter_image too (--adapter-image)",
        "an IP-Adapter needs a picture: give --adapter-image too",
    ),
    ("class_labels must be 3", "--option class_labels must be 3"),
    ("steps must be a whole number", "--option num_inference_steps must be a whole number"),
]

ENGLISH = [
    "the video has no frames",
    "the image is 3 x 4; cut it",
    "the sound of a video has 1 or 2 channels",
    "m takes text alone",
    "this model must be told the language to write",
    "/tmp/last_image/image: is no sound",
    "give a prompt: a text that says what the picture shows",
    "--option class_labels: 'x' is not JSON",
    "--image is for picture models, and m makes text",
    "x.toml: memory must be a size like '8GiB', not 3",
    "m has no component last_image.png",
    "say what is made (--component vae=org/name)",
]


@pytest.mark.parametrize(("said", "shown"), NAMED)
def test_the_librarys_names_become_flags(said: str, shown: str) -> None:
    known = flags(named=("class_labels=[3]", "latents=x", *(["num_inference_steps=0"] if "steps" in said else [])))
    assert by_flags(said, known) == shown
    assert by_flags(shown, known) == shown  # what was translated stays


@pytest.mark.parametrize("said", ENGLISH)
def test_the_same_words_elsewhere_stay(said: str) -> None:
    assert by_flags(said, flags()) == said


def test_axes_are_named_as_such() -> None:
    known = flags("grid", items=("control-scale=1,2", "seed=1..3", "steps"))
    assert by_flags("--axis seed: seed must be from 0", known) == "--axis seed: seed must be from 0"
    assert by_flags("seed must be from 0, steps must be 3", known) == "--axis seed must be from 0, steps must be 3"
    assert by_flags("steps must be 3", known) == "--steps must be 3"
    assert by_flags("control_scale must be a number", known) == "--axis control-scale must be a number"


def test_commands_whose_words_are_not_the_librarys_are_left_alone() -> None:
    assert flags("chain") == {}
    assert by_flags("steps must be a list", {}) == "steps must be a list"


def test_the_command_says_the_flag(kamado: Kamado) -> None:
    done = kamado("run", "model", "x", "--steps", "0")
    assert (done.status, done.err) == (2, "kamado: --steps must be a whole number from 1 to 10000, not 0\n")
