"""`plaudit generate`."""

import dataclasses
from typing import Annotated

import typer

from plaudit.cli.options import Address, AsChat, Json, Timeout, prompt_of
from plaudit.cli.printing import print_json


def generate(
    prompt: Annotated[str, typer.Argument(help="What the policy continues.")],
    address: Address,
    max_new_tokens: Annotated[int, typer.Option(help="Most tokens of a response.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens of this probability.")] = 1.0,
    samples: Annotated[int, typer.Option(help="Responses to print.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Makes the responses repeatable.")] = None,
    chat: AsChat = False,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Prints responses of a policy, one after the other."""
    from plaudit.clients import GenerateOptions, PolicyClient

    options = GenerateOptions(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, samples_per_prompt=samples
    )
    if seed is not None:
        options["seeds"] = [seed]
    with PolicyClient(address, timeout=timeout) as policy:
        generation = policy.generate([prompt_of(prompt, chat)], **options)
    if as_json:
        print_json(dataclasses.asdict(generation))
        return
    for sequence in generation.sequences:
        print(sequence.text)
