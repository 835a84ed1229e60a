"""What of a request can be refused before its tokens are known, in the order of the contract.

Also whether tokenizer and model fit. Owns the checks of inputs and options against the model's facts; never touches
tokens, permits or threads.
"""

from collections.abc import Sequence

from openbei.engine.request import Chat, EngineInfo, Input, Kind, Pair, Request, num_characters
from openbei.errors import BatchTooLarge, EmptyInput, InvalidInput, ModelError, UnknownPrompt, WrongTask

MODELS: dict[Kind, str] = {
    "embedding": "an embedding model",
    "sparse": "a SPLADE model",
    "multi_vector": "a model of multi-vectors",
    "classifier": "a classifier",
    "reranker": "a reranker",
    "token_classifier": "a token classifier",
}


def check(request: Request, info: EngineInfo, max_inputs: int) -> None:
    """Raise EmptyInput, WrongTask, BatchTooLarge, UnknownPrompt or InvalidInput if the request can never succeed."""
    inputs = request.inputs
    if not len(inputs):
        raise EmptyInput("inputs must not be empty")
    if request.task not in info.tasks:
        count = len(info.labels)
        labels = f" of {count} label{'s' if count > 1 else ''}" if count else ""
        raise WrongTask(
            f"the model is {MODELS[info.kind]}{labels}: it can {' and '.join(info.tasks)}, but not {request.task}"
        )
    check_sizes(inputs, max_inputs)
    check_options(request, info)
    for item in inputs:
        check_input(item, request, info)


def check_sizes(inputs: Sequence[Input], max_inputs: int) -> None:
    """Raise EmptyInput or BatchTooLarge for too few inputs, too many, or one of nothing."""
    if not len(inputs):
        raise EmptyInput("inputs must not be empty")
    if len(inputs) > max_inputs:
        raise BatchTooLarge(f"batch size {len(inputs)} > maximum allowed batch size {max_inputs}")
    for index, item in enumerate(inputs):
        if not num_characters(item):
            raise EmptyInput(f"input {index} is empty")


def check_options(request: Request, info: EngineInfo) -> None:
    """Raise InvalidInput, UnknownPrompt or WrongTask for options that this model does not have."""
    if info.kind == "sparse" and request.task == "embed" and request.options.normalize:
        raise WrongTask("the model is a SPLADE model, whose vectors are not normalised: ask with normalize false")
    dimensions = request.options.dimensions
    most = info.multi_dim if request.task == "embed_multi" else info.embedding_dim
    if dimensions is not None and not 1 <= dimensions <= most:
        raise InvalidInput(f"dimensions must be 1 to {most}, got {dimensions}")
    check_prompt(request.options.prompt_name, info)


def check_prompt(name: str | None, info: EngineInfo) -> None:
    """Raise UnknownPrompt if the model has no prompt of that name."""
    if name is not None and name not in info.prompts:
        raise UnknownPrompt(f"prompt_name is none of the model's prompts: {sorted(info.prompts)}")


def check_ids(ids: Sequence[int], info: EngineInfo) -> None:
    """Raise InvalidInput for an id that the model has no token for."""
    if max(ids) >= info.vocab_size:
        raise InvalidInput(f"token id {max(ids)} >= vocabulary size {info.vocab_size}")


def check_input(item: Input, request: Request, info: EngineInfo) -> None:
    """Raise InvalidInput or UnknownPrompt for one input that its request or the model cannot take."""
    by_token = request.task == "classify_tokens"
    if isinstance(item, Chat) and request.task != "classify":
        raise InvalidInput(f"{request.task} takes no messages: only classify does")
    if by_token and not isinstance(item, str):
        raise InvalidInput("classify_tokens takes texts, not pairs or token ids")
    takes_none = by_token or isinstance(item, Chat) or (isinstance(item, Pair) and not info.takes_instruction)
    if request.options.prompt_name is not None and takes_none:
        raise UnknownPrompt("a pair of texts or a chat takes no prompt_name, and neither does classify_tokens")
    if not isinstance(item, str | Pair | Chat):
        check_ids(item, info)


def check_vocabulary(num_tokens: int, num_rows: int) -> None:
    """Raise ModelError if the tokenizer has tokens that the model has no embedding for."""
    if num_tokens > num_rows:
        raise ModelError(
            f"tokenizer.json has {num_tokens} tokens, the model embeds {num_rows}: they do not belong together"
        )
