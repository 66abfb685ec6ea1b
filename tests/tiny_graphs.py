"""The graphs of the tiny bundle: each a few ONNX operators between the inputs and outputs that graphs.py states.

``FLOAT`` in a body stands for the element type of the precision set; ``offset`` is the mean of the stored weight.
"""

from __future__ import annotations

import onnx
import onnx.parser

from arlon_rt.config import ModelConfig
from arlon_rt.graphs import FLOAT_DTYPE, GraphSpec, TensorSpec, signature

OPSET = 24
_PROTO_TYPE = {"float32": "float", "float16": "float16", "int64": "int64", "bool": "bool", "uint8": "uint8"}
_CODE = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}


def graph_model(spec: GraphSpec, model: ModelConfig, precision: str) -> onnx.ModelProto:
    """One graph as an ONNX model whose weight ``bias`` lies in ``<network>.data`` as float16."""
    body = _BIAS + _BODIES[spec.name](model) + _scatters(spec)
    body = body.replace("FLOAT", str(_CODE[FLOAT_DTYPE[precision]]))
    inputs, outputs = (", ".join(_declared(t, precision) for t in tensors) for tensors in (spec.inputs, spec.outputs))
    graph = onnx.parser.parse_graph(f"{spec.name} ({inputs}) => ({outputs}) {{ {body} }}")
    bias = graph.initializer.add(name="bias", dims=[256], data_type=onnx.TensorProto.FLOAT16)
    bias.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", f"{spec.network}.data"), ("offset", "0"), ("length", "512")):
        bias.external_data.add(key=key, value=value)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)


def _declared(tensor: TensorSpec, precision: str) -> str:
    ((name, dtype, axes),) = signature([tensor], precision)
    return f"{_PROTO_TYPE[dtype]}[{','.join(map(str, axes))}] {name}"


def _ints(name: str, *values: int) -> str:
    return f"{name} = Constant <value = int64[{len(values)}] {{{','.join(map(str, values))}}}> ()\n"


def _scatters(spec: GraphSpec) -> str:
    """Write ``update`` (batch, heads, length, head_dim) into every cache, in place where the caller binds it so."""
    update = "update, write_index" if any(t.name == "write_index" for t in spec.inputs) else "update"
    return "".join(
        f'{out.name} = TensorScatter <axis = -2, mode = "linear"> ({out.alias}, {update})\n'
        for out in spec.outputs if out.alias
    )


_BIAS = """
    bias32 = Cast <to = 1> (bias)
    offset = ReduceMean <keepdims = 0> (bias32)
"""


def _text_encoder(c: ModelConfig) -> str:
    """Hidden state: the token id over the vocabulary size, times a ramp over channels; zero where masked."""
    ramp = ",".join(f"{1 + i / 8:.3f}" for i in range(c.text.d_model))
    return _ints("last", -1) + f"""
        size = Constant <value = float {{{c.text.vocab_size}.0}}> ()
        ids = Cast <to = 1> (input_ids)
        mask = Cast <to = 1> (attention_mask)
        share = Div (ids, size)
        kept = Mul (share, mask)
        column = Unsqueeze (kept, last)
        ramp = Constant <value = float[{c.text.d_model}] {{{ramp}}}> ()
        product = Mul (column, ramp)
        sum = Add (product, offset)
        last_hidden_state = Cast <to = FLOAT> (sum)
    """


def _ar_prefix(c: ModelConfig) -> str:
    """Cache update: the first head_dim channels of the text, the same for every head."""
    assert c.ar
    return _ints("one", 1) + _ints("zero", 0) + _ints("width", c.ar.head_dim) + _ints("last", -1) + _ints(
        "heads", 1, c.ar.num_heads, 1, 1
    ) + """
        part = Slice (last_hidden_state, zero, width, last)
        column = Unsqueeze (part, one)
        update = Expand (column, heads)
    """


def _ar_step(c: ModelConfig) -> str:
    """Next token: the last one, the uniform and what is written in the first cache, modulo the number of codes."""
    assert c.ar
    a = c.ar
    return (
        _ints("last", -1) + _ints("shape", 1, a.num_heads, 1, a.head_dim) + _ints("square", 1, 1)
        + _ints("column", 1, 1, -1, 1) + _ints("codes", a.num_codes) + _ints("three", 1, 1, 1)
        + _ints("slots", *range(a.max_length)) + _ints("rows_alone", -1, 1) + _ints("mask_axes", 1, 3) + f"""
        batch = Shape (write_index)
        rows = Concat <axis = 0> (batch, three)
        ids = Cast <to = FLOAT> (tokens)
        slot = Reshape (ids, column)
        heads = Expand (slot, shape)
        update = Expand (heads, rows)
        key32 = Cast <to = 1> (key_0)
        begin = Reshape (write_index, rows_alone)
        older = Less (slots, begin)
        written = Cast <to = 1> (older)
        mask = Unsqueeze (written, mask_axes)
        known = Mul (key32, mask)
        seen = ReduceMean <keepdims = 0> (known)
        scale = Constant <value = float {{{a.num_codes}.0}}> ()
        steps = Mul (uniform, scale)
        noisy = Add (steps, seen)
        weight = ReduceSum <keepdims = 0> (guidance_weights)
        weighted = Mul (noisy, weight)
        whole = Floor (weighted)
        drawn = Cast <to = 7> (whole)
        latest = Gather <axis = 1> (tokens, last)
        sum = Add (latest, drawn)
        code = Mod (sum, codes)
        next_token = Reshape (code, square)
    """)


def _vq_decoder(c: ModelConfig) -> str:
    """Coarse latents: the code over the number of codes, repeated over its stride."""
    assert c.vq
    st, sh, sw = c.vq.stride
    channels = c.vq.latent_channels
    return (
        _ints("axes", 1, 3, 5, 7) + _ints("repeat", 1, channels, 1, st, 1, sh, 1, sw)
        + _ints("strides", 1, 1, st, sh, sw) + _ints("channels", 1, channels, 1, 1, 1)
        + _ints("zero", 0) + _ints("one", 1) + _ints("four", 4) + f"""
        grid = Shape (tokens)
        first = Slice (grid, zero, one)
        rest = Slice (grid, one, four)
        five = Concat <axis = 0> (first, one, rest)
        scaled = Mul (five, strides)
        target = Mul (scaled, channels)
        size = Constant <value = float {{{c.vq.num_codes}.0}}> ()
        codes = Cast <to = 1> (tokens)
        share = Div (codes, size)
        wide = Unsqueeze (share, axes)
        spread = Expand (wide, repeat)
        shaped = Reshape (spread, target)
        coarse = Add (shaped, offset)
    """)


def _vq_encoder(c: ModelConfig) -> str:
    """The code whose share of all codes the first value of its block is; undoes `_vq_decoder`."""
    assert c.vq
    st, sh, sw = c.vq.stride
    return (
        _ints("axes", 1, 2, 3, 4) + _ints("begin", 0, 0, 0, 0) + _ints("end", 1, *(3 * (1 << 30,)))
        + _ints("step", 1, st, sh, sw)
        + _ints("channel", 1) + _ints("all", c.vq.num_codes) + f"""
        corner = Slice (latents, begin, end, axes, step)
        alone = Squeeze (corner, channel)
        share = Sub (alone, offset)
        size = Constant <value = float {{{c.vq.num_codes}.0}}> ()
        scaled = Mul (share, size)
        whole = Round (scaled)
        codes = Cast <to = 7> (whole)
        tokens = Mod (codes, all)
    """)


def _caption(c: ModelConfig) -> str:
    """Keys and values: the first head_dim channels of the text, or of zeros where ``use_null``."""
    d = c.dit
    return _ints("zero", 0) + _ints("width", d.head_dim) + _ints("last", -1) + _ints("tail", 1, 2) + _ints(
        "lead", 0, 1, 3
    ) + _ints("layers", 2 * d.depth, 2, 1, d.num_heads, 1, 1) + """
        null = Unsqueeze (use_null, tail)
        part = Slice (last_hidden_state, zero, width, last)
        nothing = Sub (part, part)
        chosen = Where (null, nothing, part)
        wide = Unsqueeze (chosen, lead)
        caption_kv = Expand (wide, layers)
    """


def _semantic(c: ModelConfig) -> str:
    """Features: the mean of each coarse frame, the same for every patch and channel."""
    assert c.injection
    _, ph, pw = c.dit.patch_size
    return _ints("space", 1, 3, 4) + _ints("column", 1, 1, -1, 1, 1) + _ints("round", ph - 1, pw - 1) + _ints(
        "patch", ph, pw
    ) + _ints("lead", len(c.injection.layers), 1, 1) + _ints("channels", 3 * c.dit.hidden_size) + """
        means = ReduceMean <keepdims = 0> (coarse, space)
        rows = Reshape (means, column)
        size = Shape <start = 3, end = 5> (coarse)
        up = Add (size, round)
        counts = Div (up, patch)
        patches = ReduceProd <keepdims = 1> (counts)
        target = Concat <axis = 0> (lead, patches, channels)
        spread = Expand (rows, target)
        features = Cast <to = FLOAT> (spread)
    """


def _dit(c: ModelConfig) -> str:
    """The true update of the flow around the velocity ``caption of the row + features - latents``."""
    return _ints("flat", 1, 1, -1, 1, 1) + _ints("text_axes", 0, 1, 3, 4, 5) + (
        """
        injected32 = Cast <to = 1> (features)
        injected = ReduceMean <keepdims = 0> (injected32)
        """ if c.injection else "injected = Identity (offset)\n"
    ) + """
        thousand = Constant <value = float {1000.0}> ()
        one = Constant <value = float {1.0}> ()
        t = Div (timestep, thousand)
        rest = Sub (one, t)
        old = Mul (rest, latents)
        new = Mul (t, noise)
        mixed = Add (old, new)
        renoise = Reshape (noise_mask, flat)
        start = Where (renoise, mixed, latents)
        kv32 = Cast <to = 1> (caption_kv)
        rows = ReduceMean <keepdims = 0> (kv32, text_axes)
        weighted = Mul (guidance_weights, rows)
        text = ReduceSum <keepdims = 0> (weighted)
        guide = Add (text, injected)
        target = Add (guide, offset)
        velocity = Sub (target, start)
        change = Mul (step_size, velocity)
        stepped = Add (start, change)
        active = Reshape (frame_mask, flat)
        latents_out = Where (active, stepped, start)
    """


def _vae_decoder(c: ModelConfig) -> str:
    """Frames: the first three latent channels, each latent repeated over its 4 frames and 8 x 8 pixels."""
    s = c.vae.space_stride
    return _ints("zero", 0) + _ints("three", 3) + _ints("one", 1) + _ints("axes", 3, 5) + _ints(
        "repeat", 1, 1, 1, s, 1, s
    ) + _ints("strides", 1, s, s, 1) + _ints("stride", c.vae.time_stride) + """
        colours = Slice (latents, zero, three, one)
        volume = Squeeze (colours, zero)
        moved = Transpose <perm = [1, 0, 2, 3]> (volume)
        places = Div (frame_index, stride)
        wanted = Gather <axis = 0> (moved, places)
        wide = Unsqueeze (wanted, axes)
        spread = Expand (wide, repeat)
        last = Transpose <perm = [0, 2, 3, 4, 5, 1]> (spread)
        count = Shape (frame_index)
        size = Shape <start = 3, end = 5> (latents)
        small = Concat <axis = 0> (count, size, three)
        target = Mul (small, strides)
        pixels_last = Reshape (last, target)
        pixels = Transpose <perm = [0, 3, 1, 2]> (pixels_last)
        back = Transpose <perm = [0, 2, 3, 1]> (pixels)
        half = Constant <value = float {127.5}> ()
        full = Constant <value = float {255.0}> ()
        none = Constant <value = float {0.0}> ()
        scaled = Mul (back, half)
        centred = Add (scaled, half)
        shifted = Add (centred, offset)
        kept = Clip (shifted, none, full)
        frames = Cast <to = 2> (kept)
    """


def _vae_encoder(c: ModelConfig) -> str:
    """Latents: mean colour of 8 x 8 pixels of every fourth padded frame; the fourth channel repeats the first."""
    s, first = c.vae.space_stride, c.vae.time_stride - 1
    return _ints("inside", 2, 4) + _ints("start", first) + _ints(
        "end", 1 << 30
    ) + _ints("zero", 0) + _ints("step", c.vae.time_stride) + _ints("order", 0, 1, 2, 0) + _ints("one", 1) + _ints(
        "two", 2
    ) + _ints("side", s) + _ints("rgb", 3) + """
        n = Shape <start = 0, end = 1> (frames)
        hw = Shape <start = 1, end = 3> (frames)
        small = Div (hw, side)
        h = Slice (small, zero, one)
        w = Slice (small, one, two)
        target = Concat <axis = 0> (n, h, side, w, side, rgb)
        values = Cast <to = 1> (frames)
        half = Constant <value = float {127.5}> ()
        scaled = Div (values, half)
        unit = Constant <value = float {1.0}> ()
        pixels_last = Sub (scaled, unit)
        pixels = Transpose <perm = [0, 3, 1, 2]> (pixels_last)
        back = Transpose <perm = [0, 2, 3, 1]> (pixels)
        tiles = Reshape (back, target)
        means = ReduceMean <keepdims = 0> (tiles, inside)
        four = Gather <axis = 3> (means, order)
        row = Slice (four, zero, one, zero)
        empty = Sub (row, row)
        padded = Concat <axis = 0> (empty, four)
        chosen = Gather <axis = 0> (padded, frame_index)
        kept = Slice (chosen, start, end, zero, step)
        moved = Transpose <perm = [3, 0, 1, 2]> (kept)
        batched = Unsqueeze (moved, zero)
        latents = Add (batched, offset)
    """


_BODIES = {
    "text_encoder": _text_encoder, "ar_prefix": _ar_prefix, "ar_step": _ar_step, "vq_decoder": _vq_decoder,
    "vq_encoder": _vq_encoder,
    "caption": _caption, "semantic": _semantic, "dit": _dit, "vae_decoder": _vae_decoder, "vae_encoder": _vae_encoder,
}
