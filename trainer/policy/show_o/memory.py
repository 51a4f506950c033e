"""The arithmetic of Show-o's activations in an update."""

from __future__ import annotations

from typing import Literal

from trainer.policy.show_o.config import ShowOConfig

Dtype = Literal["float32", "bfloat16"]


def activation_bytes(
    config: ShowOConfig, *, rollouts: int, guided: bool, checkpointing: bool, dtype: Dtype = "float32"
) -> int:
    """Return the bytes that one denoising step of `rollouts` images keeps for its backward pass.

    An upper bound for images: every prompt differs and fills its block, and every position is masked. It assumes an
    attention kernel that does not store its weights. Answers need less. With `checkpointing` each block keeps its
    input and the keys and values of texts, and one block at a time has all of its activations. "bfloat16" is autocast.
    """
    phi, element = config.phi, 4 if dtype == "float32" else 2
    width, layers, positions = phi.hidden_size, phi.num_hidden_layers, config.num_vq_tokens
    prompt, image, passes = config.max_text_length + 1, positions + 2, 1 + guided
    texts = (rollouts + guided) * prompt  # guidance has one empty prompt for all rollouts
    images = passes * rollouts * image
    of_token = _block_bytes(width, phi.intermediate_size, element)
    # Image rows keep keys and values of texts in front of their own, and a mask where prompts are padded.
    of_rollout = passes * element * (prompt * 2 * width + image * (prompt + image))
    block = (texts + images) * of_token + rollouts * of_rollout
    read = passes * rollouts * element * prompt * 2 * width
    kept = 4 * (texts + images) * width + read if checkpointing else block
    # The head's input, and in float32 its log-probabilities, their gradient, and that of its logits.
    head = rollouts * positions * (4 * passes * width + 3 * 4 * config.codebook_size)
    return layers * kept + (block if checkpointing else 0) + head


def _block_bytes(width: int, intermediate: int, element: int) -> int:
    """Return the bytes that one block keeps of one token, if matrix products take numbers of `element` bytes.

    In float32 the block's input, and queries and keys before their norms. In `element` bytes the normed input, queries,
    keys, values, the attention's result, the input of `dense`, and the MLP before and after its activation.
    """
    return 3 * width * 4 + 6 * width * element + 2 * intermediate * element
