"""The picture: colours, labels, reasons, repeated blocks, and files that open."""

import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

import jaxsparse as js
from jaxsparse.graph import channels, plot
from jaxsparse.graph.picture.repeats import picture


class Bottleneck(nn.Module):
    width: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        y = x
        for kernel, width in ((1, self.width), (3, self.width), (1, 4 * self.width)):
            stride = self.stride if kernel == 3 else 1
            y = nn.Conv(width, (kernel, kernel), stride, use_bias=False)(y)
            y = nn.BatchNorm(use_running_average=True)(y)
            y = nn.relu(y) if width == self.width else y
        if x.shape != y.shape:
            x = nn.Conv(y.shape[-1], (1, 1), self.stride, use_bias=False, name="project")(x)
        return nn.relu(x + y)


class ResNet50(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(64, (7, 7), 2)(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, count in enumerate((3, 4, 6, 3)):
            for layer in range(count):
                x = Bottleneck(64 * 2**stage, 2 if stage and not layer else 1)(x)
        return nn.Dense(1000)(x.mean((1, 2)))


class Encoder(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, 16)(tokens)
        for layer in range(self.layers):
            x = Layer(name=f"layer_{layer}")(x)
        return nn.Dense(3)(x.mean(1))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x))))


def graph_of(model, *inputs):
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return channels(model.apply, params, *inputs)


@pytest.fixture(scope="module")
def resnet():
    return graph_of(ResNet50(), jnp.zeros((1, 224, 224, 3)))


def test_repeated_blocks_of_a_resnet_are_drawn_once(resnet):
    whole, folded = picture(resnet, (), False), picture(resnet, (), True)
    assert len(folded.nodes) < 95 < 150 < len(whole.nodes)
    assert [block.times for block in folded.blocks] == [2, 3, 5, 2]
    assert folded.blocks[1].modules == ("Bottleneck_4", "Bottleneck_6")
    shown = sum(node.kernel is not None for node in folded.nodes)
    inside = sum(
        (block.times - 1) * sum(node.kernel is not None for node in folded.nodes[b : e + 1])
        for block in folded.blocks
        for b, e in [(block.first, block.last)]
    )
    assert shown + inside == 54  # 53 convolutions and the head


def test_nodes_feed_later_nodes_only(resnet):
    for drawn in (picture(resnet, (), True), picture(resnet, (), False)):
        assert all(i < place for place, node in enumerate(drawn.nodes) for i in node.inputs)


def test_the_first_layer_of_a_transformer_is_like_the_others():
    drawn = picture(graph_of(Encoder(4), jnp.zeros((2, 8), int)), (), True)
    assert [(block.times, block.modules) for block in drawn.blocks] == [(4, ("layer_0", "layer_3"))]
    names = [node.name for node in drawn.nodes]
    assert names.count("layer_0/LayerNorm_0") == 1
    assert not any(name.startswith("layer_1") for name in names)


@pytest.mark.parametrize(
    "suffix, begins", [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")]
)
def test_pictures_open(resnet, tmp_path, suffix, begins):
    path = tmp_path / f"resnet.{suffix}"
    plot(resnet, path)
    data = path.read_bytes()
    assert data.startswith(begins)
    plot(resnet, path)
    assert path.read_bytes() == data
    if suffix == "svg":
        assert data.count(b"Bottleneck_4 \xe2\x80\xa6 Bottleneck_6") >= 1  # kept as a comment


def test_text_is_written_and_returned(resnet, tmp_path):
    kernels = [path for path in resnet.shapes if path.endswith("Conv_1/kernel")]
    text = plot(resnet, tmp_path / "resnet.txt", sparse=kernels)
    assert (tmp_path / "resnet.txt").read_text() == text + "\n"
    lines = text.splitlines()
    assert lines[0] == "red     input: is an input of the function"
    assert lines[1].startswith("green   Conv_0: conv 7 x 7 x 3 x 64, K 0")
    assert "3 times  Bottleneck_4 … Bottleneck_6" in lines
    sparse = [line for line in lines if ", S" in line]
    assert len(sparse) == 8 and all("Conv_1" in line for line in sparse)
    assert sum("BatchNorm" in line and "orange" in line for line in lines) >= 20


def test_red_nodes_say_why():
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 3))}

    def leak(p, x):
        hidden = jnp.sort(x @ p["a"], axis=-1)
        return hidden @ p["b"]

    text = plot(channels(leak, params, jnp.ones((2, 4))))
    assert "red     sort (" in text
    assert "grey    a: dot_general 4 x 8" in text

    def both(p, x):
        hidden = x @ p["a"]
        return hidden, hidden @ p["b"]

    lines = plot(channels(both, params, jnp.ones((2, 4)))).splitlines()
    assert lines[-1].startswith("red     output: is an output of the function <- ")


def test_scans_show_how_often_they_run():
    params = {"in": jnp.ones((4, 8)), "loop": jnp.ones((5, 8, 8)), "out": jnp.ones((8, 3))}

    def fn(p, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x @ p["in"], p["loop"])
        return x @ p["out"]

    graph = channels(fn, params, jnp.ones((2, 4)))
    assert "loop: dot_general" in plot(graph)
    assert ", x 5 <-" in next(line for line in plot(graph).splitlines() if " loop:" in line)


def test_masks_name_the_sparse_leaves():
    params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
    masks = js.compute_masks(params, [js.Rule("down", js.NM(2, 4))])
    graph = channels(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 4)))
    text = plot(graph, sparse=masks)
    assert "down: dot_general 8 x 4, C 0, S" in text
    with pytest.raises(ValueError, match=r"no leaf 'dwn'.*down"):
        plot(graph, sparse=["dwn"])
    with pytest.raises(ValueError, match=r"none of \.svg, \.png, \.pdf and \.txt"):
        plot(graph, "graph.gif")


def test_what_is_missing_is_named(resnet, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(ModuleNotFoundError, match=r"igraph: pip install .jaxsparse\[plot\]"):
        plot(resnet, tmp_path / "resnet.png")
    assert plot(resnet, tmp_path / "resnet.txt")
