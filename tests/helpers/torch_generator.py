"""State dicts that PyTorch code of a generator (`DiT`) would save, as NumPy arrays."""

import numpy as np


def linear(name, layer):
    return {f"{name}.weight": layer["kernel"].T, f"{name}.bias": layer["bias"]}


def scale(name, layer):
    return {f"{name}.weight": layer["scale"]}


def state_dict(model, params):
    """The tensors as DiT's code names them, with what this generator has besides."""
    p = model.patch_size
    conv = params["patch_embedding"]["kernel"].reshape(p, p, model.in_channels, model.width)
    found = {
        "x_embedder.proj.weight": conv.transpose(3, 2, 0, 1),
        "x_embedder.proj.bias": params["patch_embedding"]["bias"],
        "pos_embed": params["position_embedding"][None],
        "y_embedder.embedding_table.weight": params["class_embedding"]["embedding"],
        **linear("t_embedder.mlp.0", params["scale_embedding"]["hidden"]),
        **linear("t_embedder.mlp.2", params["scale_embedding"]["out"]),
        **scale("t_norm", params["scale_embedding"]["norm"]),
        **linear("final_layer.linear", params["final"]["output"]),
        **linear("final_layer.adaLN_modulation.1", params["final"]["modulation"]["linear"]),
    }
    if model.num_context_tokens:
        found |= linear("cls_proj", params["context_projection"])
        found["cls_embed"] = params["context_embedding"][None]
    for i in range(model.num_style_books):
        found[f"noise_embeds.{i}.weight"] = params["style_books"][i]
    if model.rms_norm:
        found |= scale("final_layer.norm_final", params["final"]["norm"])
    for i in range(model.depth):
        found |= block_of(model, params[f"block_{i}"], f"blocks.{i}")
    return {name: np.ascontiguousarray(x) for name, x in found.items()}


def block_of(model, block, name):
    attention, network = block["attention"], block["feed_forward"]
    found = {
        **linear(f"{name}.adaLN_modulation.1", block["modulation"]["linear"]),
        **linear(f"{name}.attn.qkv", attention["qkv"]),
        **linear(f"{name}.attn.proj", attention["out"]),
    }
    if model.qk_norm:
        found |= scale(f"{name}.attn.q_norm", attention["q_norm"])
        found |= scale(f"{name}.attn.k_norm", attention["k_norm"])
    if model.rms_norm:
        found |= scale(f"{name}.norm1", block["attention_norm"])
        found |= scale(f"{name}.norm2", block["feed_forward_norm"])
    if model.swiglu:
        pair = network["gate"], network["up"]
        both = {x: np.concatenate([layer[x] for layer in pair], -1) for x in pair[0]}
        found |= linear(f"{name}.mlp.w12", both) | linear(f"{name}.mlp.w3", network["down"])
    else:
        found |= linear(f"{name}.mlp.fc1", network["up"])
        found |= linear(f"{name}.mlp.fc2", network["down"])
    return found
