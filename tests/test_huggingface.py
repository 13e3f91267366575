"""Hugging Face: the same logits and answers in `transformers`, and back bit for bit."""

import contextlib
import copy
import dataclasses
import io
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tracemalloc
from math import inf, nan

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from tiny import tiny_experiment, tiny_gpt2, tiny_mistral
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2Model,
)

from parity_jax.analysis.inspection import ancestry
from parity_jax.analysis.snapshot import open_snapshot
from parity_jax.cli import import_hf, main
from parity_jax.config import ConfigError
from parity_jax.decode import sample
from parity_jax.models import (
    LinearConfig,
    RopeScaling,
    llama,
    qwen,
    response_logits,
)
from parity_jax.models.huggingface import (
    MAX_BYTES,
    FolderError,
    HfFolder,
    for_task,
    from_hf_config,
    load,
    to_hf_config,
    to_state_dict,
    to_tokenizer,
    write_weights,
)
from parity_jax.runs import RunDirectory, run_experiment
from parity_jax.runs.checkpoint import from_arrays, subtree, to_arrays
from parity_jax.runs.files import read_json, write_json
from parity_jax.runs.lineage import Imported
from parity_jax.tasks import MultiplicationConfig, ParityConfig, vocabulary

TASK_CONFIG = ParityConfig(5)
TASK = TASK_CONFIG.make()
SCALING = RopeScaling(8.0, 1.0, 4.0, original_len=8)
TINY = dict(num_heads=4, num_kv_heads=2, mlp_width=24)
MODELS = {
    "gpt2": tiny_gpt2(depth=2),
    "gpt2_untied": tiny_gpt2(tie_embedding=False, mlp_width=24),
    "mistral": tiny_mistral(depth=2, mlp_width=24),
    "mistral_window_tied": tiny_mistral(sliding_window=3, tie_embedding=True),
    "llama": llama(2, 16, **TINY, head_size=6),
    "llama_scaled_tied": llama(2, 16, **TINY, rope_scaling=SCALING, tie_embedding=True),
    "llama_stacked": llama(3, 16, **TINY, rope_scaling=SCALING, scan=True),
    "gpt2_stacked": tiny_gpt2(depth=2, scan=True),
    "qwen2": qwen(2, 16, **TINY),
    "qwen2_stacked_tied": qwen(2, 16, **TINY, scan=True, tie_embedding=True),
    "qwen3": qwen(2, 16, **TINY, qkv_bias=False, qk_norm=True, head_size=8),
}

SEEDS = {"mistral_window_tied": 5, "gpt2_stacked": 1}  # others answer all prompts alike


def random_params(cfg, seed=0):
    """Every parameter is random: biases are not 0 and scales not 1."""
    model = cfg.make(TASK)
    template = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep=".")
    rng = np.random.default_rng(seed)
    arrays = {
        k: np.float32(0.6 * rng.normal(size=x.shape)) for k, x in template.items()
    }
    arrays = {k: x + ("scale" in k) for k, x in arrays.items()}
    return arrays, {k: x.shape for k, x in template.items()}


def kind_of(name):
    """The model_type of a model by its name here."""
    return name.partition("_")[0]


def write_export(directory, cfg, arrays, kind="", max_bytes=MAX_BYTES):
    """The files of an export."""
    directory.mkdir(exist_ok=True)
    write_weights(directory, to_state_dict(cfg, arrays), max_bytes)
    config = to_hf_config(cfg, TASK, TASK_CONFIG, kind)
    write_json(directory / "config.json", config)
    for name, value in zip(
        ("tokenizer", "tokenizer_config"), to_tokenizer(TASK), strict=True
    ):
        write_json(directory / f"{name}.json", value)


def loaded(cfg, tensors):
    """Our arrays of tensors by name."""
    template = jax.eval_shape(cfg.make(TASK).init, jax.random.key(0))
    return to_arrays(load(cfg, template, [*tensors], tensors.__getitem__))


def read_folder(directory, cfg):
    """Our arrays of a folder."""
    folder = HfFolder(directory)
    folder.check(cfg, TASK)
    return loaded(cfg, {name: folder.read(name) for name in folder.files})


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """Config, parameters, directory, and what `transformers` makes of it."""
    cfg = MODELS[request.param]
    arrays, shapes = random_params(cfg, SEEDS.get(request.param, 0))
    directory = tmp_path_factory.mktemp(request.param)
    write_export(directory, cfg, arrays, kind_of(request.param), 5_000)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert theirs.config.model_type == kind_of(request.param)
    assert not any(info.values()), info
    return cfg, arrays, shapes, directory, theirs


def test_logits_and_greedy_answers_are_the_same(exported):
    cfg, arrays, _, _, theirs = exported
    model, fmt = cfg.make(TASK), TASK.format
    template = jax.eval_shape(model.init, jax.random.key(0))
    params = from_arrays(arrays, template)
    prompt = TASK.sample_prompts(jax.random.key(1), 32)
    shape = (32, 1, fmt.max_len)
    token_BxGxT = jax.random.randint(jax.random.key(2), shape, 0, TASK.vocab_size)
    ours = jax.jit(lambda *args: response_logits(model, *args))
    logits = np.asarray(ours(params, prompt, token_BxGxT))[:, 0]
    whole = np.concatenate([prompt.token, token_BxGxT[:, 0]], 1)
    with torch.no_grad():
        logits_BxSxV = theirs(torch.tensor(whole)).logits.numpy()
    expected = logits_BxSxV[:, TASK.prompt_len - 1 : -1]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4)

    def greedy(params, prompt):
        key, temperature_G = jax.random.key(0), jnp.zeros(1)
        return sample(key, model, params, prompt, temperature_G, fmt).token[:, 0]

    answer_BxT = np.asarray(jax.jit(greedy)(params, prompt))
    found = theirs.generate(
        torch.tensor(np.asarray(prompt.token)),
        do_sample=False,
        max_new_tokens=fmt.max_len,
    )[:, TASK.prompt_len :].numpy()
    missing = answer_BxT.shape[1] - found.shape[1]  # it stops when all have ended
    np.testing.assert_array_equal(answer_BxT, np.pad(found, ((0, 0), (0, missing))))
    assert len(np.unique(answer_BxT, axis=0)) > 1


def test_there_and_back_is_bit_identical(exported):
    cfg, arrays, _, directory, _ = exported
    assert len([*directory.glob("model*.safetensors")]) > 1  # and an index
    back = read_folder(directory, cfg)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_what_transformers_saves_comes_back(exported, tmp_path):
    """In bfloat16, and without the fields that are the defaults of the class."""
    cfg, arrays, _, _, theirs = exported
    copy.deepcopy(theirs).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    saved = read_json(tmp_path / "hf" / "config.json")
    assert import_hf.read_task("", saved) == TASK_CONFIG
    for name, array in read_folder(tmp_path / "hf", cfg).items():
        rounded = torch.tensor(arrays[name]).to(torch.bfloat16).float().numpy()
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, rounded)


def test_tokenizer(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported[3])
    prompt_BxL = np.asarray(TASK.sample_prompts(jax.random.key(3), 4).token)
    texts = [TASK.to_text(prompt_L) for prompt_L in prompt_BxL]
    assert tokenizer(texts)["input_ids"] == prompt_BxL.tolist()
    assert tokenizer.batch_decode(prompt_BxL) == texts
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    answer = TASK.from_text("+-+.__")
    assert tokenizer.decode(answer, skip_special_tokens=True) == "+-+"
    if "Qwen2" not in type(tokenizer).__name__:  # a class that drops unknown words
        with pytest.raises(Exception, match="WordLevel"):
            tokenizer("+x-")


@pytest.mark.parametrize("cfg", [ParityConfig(9), MultiplicationConfig(2)])
def test_the_tokenizer_writes_what_the_task_does(cfg, tmp_path):
    task = cfg.make()
    names = ("tokenizer", "tokenizer_config")
    for name, value in zip(names, to_tokenizer(task), strict=True):
        write_json(tmp_path / f"{name}.json", value)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 40, 1000)
    token = [rng.integers(0, task.vocab_size, n).tolist() for n in lengths]
    texts = [task.to_text(np.array(token_L)) for token_L in token]
    assert len({*texts}) > 900
    assert tokenizer(texts)["input_ids"] == token
    assert tokenizer.batch_decode(token) == texts
    if isinstance(cfg, MultiplicationConfig):
        text = "2 1 * 3 4||8 4 0 + 0 6 3 0 #### 8 0 4 0 ."
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert (
            tokenizer(text.replace("||", " || "))["input_ids"]
            == task.from_text(text).tolist()
        )  # spaces between words are allowed


def test_a_tokenizer_of_any_task(monkeypatch, tmp_path):
    """Several ends, ids in another order."""
    tests = os.path.dirname(__file__)
    monkeypatch.syspath_prepend(os.path.join(tests, "outside"))
    from toy_task import CopyConfig

    def spelled(texts):
        task = CopyConfig(3).make()
        task.to_text = lambda tokens: "".join(texts[t] for t in np.asarray(tokens))
        return task

    task = CopyConfig(3).make()
    task.format = dataclasses.replace(task.format, pad_id=1, end_ids=(3, 0))
    tokenizer, options = to_tokenizer(task)
    assert [token["id"] for token in tokenizer["added_tokens"]] == [0, 1, 3]
    words = vocabulary(task)
    assert (options["pad_token"], options["eos_token"]) == (words[1], words[3])
    config = to_hf_config(MODELS["gpt2"], task, CopyConfig(3))
    assert (config["pad_token_id"], config["eos_token_id"]) == (1, [3, 0])
    for texts, told in (("_.##", r"to_text\(\[3\]\)='#'"), ("_. 1", r"\[2\]\)=''")):
        with pytest.raises(ConfigError, match=f"{told}: must be a text of its own"):
            to_tokenizer(spelled(texts))


@pytest.mark.parametrize(
    "cfg",
    [
        tiny_gpt2(norm="rms"),
        tiny_gpt2(positions="rotary"),
        tiny_gpt2(sliding_window=2),
        tiny_gpt2(num_kv_heads=1),
        tiny_mistral(bias=True),
    ],
)
def test_mixtures_of_the_families_are_refused(cfg):
    with pytest.raises(ConfigError, match=r"must be GPT-2 .* Mistral or Llama"):
        to_hf_config(cfg, TASK, TASK_CONFIG)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gpt2", {"model_type": "phi"}),
        ("gpt2", {"quantization_config": {"quant_method": "gptq"}}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("mistral", {"hidden_act": "gelu"}),
        ("mistral", {"head_dim": -5}),
        ("mistral", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}),
        ("llama", {"attention_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}),
        ("llama_scaled_tied", {"rope_scaling": {"rope_type": "dynamic"}}),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
        ("qwen2", {"use_sliding_window": True}),
        ("mistral", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("mistral", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("mistral", {"rope_scaling": "linear"}),
        ("gpt2", {"layer_norm_epsilon": "1e-5"}),
        ("gpt2", {"n_embd": "16"}),
        ("gpt2", {"n_layer": 0}),
        ("gpt2", {"add_cross_attention": True}),
        ("llama", {"dtype": "float8"}),
        ("mistral", {"torch_dtype": "int8"}),
        ("llama", {"model_type": ["llama"]}),
        ("gpt2", {"num_attention_heads": 1}),  # which stands for n_head
        ("mistral", {"sliding_window": 0}),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}),
        ("llama", {"rope_parameters": False}),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}),
        ("llama", {"partial_rotary_factor": 0.5}),
        ("llama", {"hidden_size": -32}),
        ("llama", {"head_dim": ""}),
        ("llama", {"layer_types": 3}),
    ],
)
def test_models_that_ours_cannot_be_are_refused(kind, change):
    config = to_hf_config(MODELS[kind], TASK, TASK_CONFIG, kind_of(kind))
    assert for_task(from_hf_config(config), TASK) == MODELS[kind].resolved()
    name = next(iter(change))
    said = "rope_|partial_rotary" if name == "rope_parameters" else name
    with pytest.raises(ConfigError, match=said):  # in the words of config.json
        from_hf_config(config | change)


@pytest.mark.parametrize("kind", MODELS)
def test_whatever_config_json_says_it_is_read_or_refused(kind):
    """Values of every type under every key: no error but in its words."""
    config = to_hf_config(MODELS[kind], TASK, TASK_CONFIG, kind_of(kind))
    keys = {*config, "layer_types", "rope_parameters", "torch_dtype", "head_dim"}
    values = (None, True, -1, 0, 2.5, 10**30, inf, nan, "", [], [[1]], {}, {"a": 1})
    num_read = 0
    for key, value in itertools.product(sorted(keys - {"parity_jax"}), values):
        with contextlib.suppress(ConfigError):
            from_hf_config(config | {key: value})
            num_read += 1
    assert 0 < num_read < len(keys) * len(values)


def test_keys_that_stand_for_others_are_read():
    """As transformers reads a GPT-2 that is written in the words of other families."""
    config = to_hf_config(MODELS["gpt2"], TASK, TASK_CONFIG, "gpt2")
    words = {"hidden_size": "n_embd", "num_attention_heads": "n_head"}
    words |= {"num_hidden_layers": "n_layer", "max_position_embeddings": "n_positions"}
    other = {k: v for k, v in config.items() if k not in words.values()}
    other |= {alias: config[name] for alias, name in words.items()}
    assert from_hf_config(other) == from_hf_config(config)
    read = GPT2Config(**other)
    assert (read.n_head, read.n_embd) == (config["n_head"], config["n_embd"])


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gpt2", {"layer_norm_epsilon": float(np.float32(1e-5))}),
        ("gpt2", {"n_inner": None}),
        ("mistral", {"rms_norm_eps": float(np.float32(1e-5))}),
        ("mistral", {"rope_theta": 10_000}),
        ("mistral", {"rope_scaling": None, "rope_parameters": None}),
        ("mistral", {"rope_scaling": {"type": "default"}}),
        ("mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ],
)
def test_other_ways_to_say_the_same_are_read(kind, change):
    config = to_hf_config(MODELS[kind], TASK, TASK_CONFIG)
    assert for_task(from_hf_config(config | change), TASK) == MODELS[kind].resolved()


def test_what_older_files_hold_beside_the_weights(tmp_path):
    """Mask buffers, and names of a model that was saved without its head."""
    cfg = MODELS["gpt2"]
    arrays, _ = random_params(cfg)
    tensors = dict(to_state_dict(cfg, arrays))
    bare = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    for whole, prefix in ((tensors, "transformer."), (bare, "")):
        mask = np.tril(np.ones((1, 1, 11, 11), np.bool_))
        buffers = {f"{prefix}h.{n}.attn.bias": mask for n in range(cfg.depth)}
        buffers |= {f"{prefix}h.0.attn.masked_bias": np.float32(-1e4)}
        found = loaded(cfg, whole | buffers)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ConfigError, match="is unknown"):
        loaded(cfg, bare | {"h.0.attn.biased": mask})
    write_export(tmp_path / "hf", cfg, arrays)
    without_head = GPT2Model.from_pretrained(tmp_path / "hf")
    without_head.save_pretrained(tmp_path / "bare")
    weights = tmp_path / "bare" / "model.safetensors"
    assert "wte.weight" in load_file(weights)
    for name, array in read_folder(tmp_path / "bare", cfg).items():
        np.testing.assert_array_equal(array, arrays[name])


def test_wrong_tensors_are_named():
    cfg = MODELS["mistral"]
    arrays, _ = random_params(cfg)
    tensors = dict(to_state_dict(cfg, arrays))
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        "is missing": {k: x for k, x in tensors.items() if k != name},
        r"must have shape \(24, 16\)": tensors | {name: tensors[name].T},
        "is unknown": tensors | {"model.layers.2.mlp.up_proj.weight": tensors[name]},
        "dtype='int64': must be floating": tensors | {name: tensors[name].astype(int)},
        "'nan or inf': must be finite": tensors | {name: tensors[name] * np.nan},
        "must be finite": tensors | {name: tensors[name].astype(float) * 1e300},
    }
    for message, changed in changes.items():
        with pytest.raises(ConfigError, match=message):
            loaded(cfg, changed)


@pytest.fixture
def say(capsys):
    """Type a command: its exit code, what it printed, what it said is wrong."""

    def say(*arguments):
        code = main.run([str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return say


def test_a_member_goes_out_and_starts_another_run(tmp_path, say):
    workdir, out, back = (tmp_path / name for name in ("run", "hf", "back"))
    runs = FrozenDict({"pretrain": tiny_experiment().runs["pretrain"]})
    experiment = tiny_experiment(runs=runs)
    run_experiment(experiment, workdir, quiet=True)
    run = workdir / "pretrain"
    code, printed, error = say("export_hf", run, out)
    assert (code, printed) == (2, "")
    assert error == "error: member='': must choose one of seed=0; seed=1\n"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    command = ["export_hf", run, "--member=seed=1", "--step=2", out]
    code, printed, error = say(*command)
    told = f"{out}: GPT2LMHeadModel, seed=1 of {run} at step 2\n"
    assert (code, printed, error) == (0, told, "")
    code, _, error = say(*command)
    assert (code, error) == (2, f"error: OUT={str(out)!r}: must not exist yet\n")
    code, printed, error = say("import_hf", out, back)
    told = f"{back}: a run at step 0, parameters of {out} "
    told += "(task kind=parity num_bits=4 leap=1)\n"
    assert (code, printed, error) == (0, told, "")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "hf", "back"}
    for place in (workdir, run, workdir / "new" / "deep"):  # they would be its runs
        for command in (["export_hf", run, "--member=seed=1"], ["import_hf", out]):
            code, _, error = say(*command, place / "out")
            assert code == 2 and "must not be in" in error and "runs of its" in error
            assert not (place / "out").exists()
    original = open_snapshot(RunDirectory(run), 2, {"seed": 1})
    directory = RunDirectory(back)
    copied = open_snapshot(directory)
    assert copied.run.model == original.run.model
    assert copied.run.task == original.run.task
    assert (copied.run.parent.path, copied.step, copied.steps) == ("", 0, [0])
    assert directory.read_finished().step == (0,)
    (entry,) = ancestry(directory)
    assert entry["imported"]["path"] == str(out)
    assert "imported from" in say("inspect", back, "--prompts=0")[1]
    expected = subtree(original.arrays, "params")
    found = subtree(copied.arrays, "params")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    only = FrozenDict({"seed": 0})
    child = dataclasses.replace(
        runs["pretrain"], parent=str(back), parent_member=only, num_steps=1
    )
    children = tiny_experiment(runs=FrozenDict({"child": child}))
    run_experiment(children, tmp_path / "other", quiet=True)
    child = tmp_path / "other" / "child"
    start = open_snapshot(RunDirectory(child), 0, {"seed": 1})
    for name, array in subtree(start.arrays, "params").items():
        np.testing.assert_array_equal(array, expected[name])
    shutil.rmtree(back)
    command = ["export_hf", child, "--member=seed=1"]
    code, _, error = say(*command, tmp_path / "orphan")
    assert code == 0
    assert error.startswith(f"warning: {back} is not there any more: if its weights")


def test_bad_imports_cost_one_line(tmp_path, say):
    cfg, hf, out = MODELS["gpt2"], tmp_path / "hf", tmp_path / "out"
    write_export(hf, cfg, random_params(cfg)[0])

    def said(code, *options):
        found, printed, error = say("import_hf", hf, out, *options)
        assert (found, printed) == (code, "")
        (line,) = error.splitlines()
        assert [p.name for p in tmp_path.iterdir()] == ["hf"]
        return line

    assert "must be JSON" in said(2, "--task={")
    twice = '{"kind": "parity", "num_bits": 9, "num_bits": 4}'
    assert "must be JSON: 'num_bits' stands twice" in said(2, f"--task={twice}")
    assert "must be a mapping" in said(2, "--task=3")
    assert "task.num_bitz" in said(2, '--task={"kind": "parity", "num_bitz": 3}')
    assert "model.num_positions=12: must be 0 or at least 20" in said(
        2, '--task={"kind": "parity", "num_bits": 9}'
    )
    assert "model.vocab_size=5: must be 0 or at least 18" in said(
        2, '--task={"kind": "multiplication"}'
    )
    weights = (hf / "model.safetensors").read_bytes()
    (hf / "model.safetensors").write_bytes(weights[:-8])
    assert "cannot be read" in said(1)
    (hf / "model.safetensors").unlink()
    assert "neither model.safetensors nor" in said(1)
    (hf / "model.safetensors").write_bytes(weights)
    config = read_json(hf / "config.json")
    for extra in ({}, []):
        write_json(hf / "config.json", config | {"parity_jax": extra})
        assert "the model does not tell it" in said(2)
    write_json(hf / "config.json", config | {"n_head": 3})
    assert f"n_head=3: must divide n_embd={config['n_embd']}" in said(2)
    scaled = config | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    write_json(hf / "config.json", scaled)
    assert "rope_scaling.rope_type='linear': must be default or llama3" in said(2)
    for other in ([config], "gpt2", None):
        write_json(hf / "config.json", other)
        assert "hf/config.json: damaged: must be a mapping" in said(1)
    (hf / "config.json").write_text("{")
    assert "hf/config.json: damaged" in said(1)


def test_an_import_that_is_stopped_leaves_nothing(tmp_path, say, monkeypatch):
    """A signal in the middle of writing; the same command does it all."""
    cfg, hf, out = MODELS["gpt2"], tmp_path / "hf", tmp_path / "out"
    write_export(hf, cfg, random_params(cfg)[0])
    with monkeypatch.context() as patched:
        write_run = import_hf.write_run

        def stopped(*args):
            write_run(*args)
            os.kill(os.getpid(), signal.SIGTERM)

        patched.setattr(import_hf, "write_run", stopped)
        code, printed, error = say("import_hf", hf, out)
        assert (code, printed) == (75, "")
        assert error == "error: stopped; the same command continues\n"
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]
    assert say("import_hf", hf, out)[0] == 0
    assert {p.name for p in tmp_path.iterdir()} == {"hf", "out"}


def test_the_linear_model_is_refused(tmp_path, say):
    run = tmp_path / "run"
    params = LinearConfig().make(TASK).init(jax.random.key(0))
    resolved = import_hf.imported_run(TASK_CONFIG, LinearConfig())
    import_hf.write_run(RunDirectory(run), resolved, params, Imported("", "", "gpt2"))
    code, printed, error = say("export_hf", run, tmp_path / "out")
    assert (code, printed) == (2, "")
    assert error == "error: model.kind='linear': has no counterpart at Hugging Face\n"
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_tied_head_must_be_the_embedding():
    cfg = MODELS["gpt2"]
    arrays, _ = random_params(cfg)
    tensors = dict(to_state_dict(cfg, arrays))
    head = tensors["transformer.wte.weight"]
    found = loaded(cfg, tensors | {"lm_head.weight": head})
    np.testing.assert_array_equal(found["embed.embedding"], head)
    with pytest.raises(
        ConfigError, match=r"lm_head\.weight.*must be .*: the config ties"
    ):
        loaded(cfg, tensors | {"lm_head.weight": 2 * head})


@pytest.fixture
def folder(tmp_path):
    """A tied Llama in bfloat16 and several files, as `transformers` writes it."""
    cfg = MODELS["llama_scaled_tied"]
    write_export(tmp_path / "float32", cfg, random_params(cfg)[0], "llama")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "float32", dtype=torch.bfloat16
    )
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="4KB")
    assert (tmp_path / "hf" / "model.safetensors.index.json").is_file()
    shutil.rmtree(tmp_path / "float32")
    return tmp_path / "hf"


def child_of(folder, **overrides):
    """Two members of one step from a folder."""
    run = dataclasses.replace(
        tiny_experiment().runs["pretrain"], parent=str(folder), num_steps=1
    )
    model = HfFolder(folder).model(TASK, scan=True)
    fields = {"task": TASK_CONFIG, "model": model, "runs": {"child": run}}
    fields["runs"] = FrozenDict(fields["runs"])
    return tiny_experiment(**fields | overrides)


def test_a_run_starts_from_a_folder(folder, tmp_path, say):
    """Every member has its weights, stacked; lineage says where they come from."""
    workdir = tmp_path / "run"
    run_experiment(child_of(folder), workdir, quiet=True)
    start = open_snapshot(RunDirectory(workdir / "child"), 0)
    found = subtree(start.arrays, "params")
    expected = read_folder(folder, MODELS["llama_scaled_tied"])
    for name, array in expected.items():
        head, _, leaf = name.partition(".")
        block = int(head.removeprefix("blocks_")) if "blocks" in head else None
        ours = found[name] if block is None else found[f"blocks.{leaf}"][:, block]
        for member in ours:
            np.testing.assert_array_equal(member, array)
    (entry,) = ancestry(RunDirectory(workdir / "child"))
    assert entry["imported"]["path"] == str(folder)
    assert entry["imported"]["model_type"] == "llama"
    code, printed, _ = say("export_hf", workdir / "child", tmp_path / "out", "--step=0",
                           "--member=seed=1")  # fmt: skip
    assert (code, "LlamaForCausalLM" in printed) == (0, True)
    back = read_folder(tmp_path / "out", MODELS["llama_scaled_tied"])
    for name, array in expected.items():
        np.testing.assert_array_equal(back[name], array)
    run_experiment(child_of(folder), workdir, quiet=True)  # complete: nothing to do
    weights = min(folder.glob("*.safetensors"))
    tensors = {k: x + 1 for k, x in load_file(weights).items()}
    save_file(tensors, weights)
    told = "started from other parameters than its"
    with pytest.raises(ConfigError, match=told):
        run_experiment(child_of(folder), workdir, quiet=True)
    experiment = child_of(folder)
    shutil.rmtree(folder)
    run_experiment(experiment, workdir, quiet=True)  # what is gone tells nothing
    shutil.copytree(workdir / "child", folder)  # a run in its place
    with pytest.raises(ConfigError, match=told):
        run_experiment(experiment, workdir, quiet=True)


def test_what_a_run_cannot_start_from_is_refused(folder, tmp_path):
    def said(**overrides):
        with pytest.raises(ConfigError) as caught:
            run_experiment(child_of(folder, **overrides), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()
        return str(caught.value)

    wide = dataclasses.replace(MODELS["llama_scaled_tied"], mlp_width=32)
    assert "runs.child.model.mlp_width=32: must be as in" in said(model=wide)
    pinned = dataclasses.replace(
        child_of(folder).runs["child"], parent_member=FrozenDict({"seed": 0})
    )
    message = "runs.child.parent_member={'seed': 0}: must be left out"
    assert message in said(runs=FrozenDict({"child": pinned}))
    index = folder / "model.safetensors.index.json"
    whole = read_json(index)
    name, file = next(iter(whole["weight_map"].items()))
    for change, message in (
        ({name: "elsewhere.safetensors"}, "elsewhere.safetensors: cannot be read"),
        ({"model.layers.9.weight": file}, "model.layers.9.weight is missing"),
        ({name: 3}, "damaged: no weight_map"),
        ({name: f"../folder/{file}"}, "is not a file of this folder"),
    ):
        write_json(index, whole | {"weight_map": whole["weight_map"] | change})
        with pytest.raises(FolderError, match=message):
            run_experiment(child_of(folder), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_are_refused():
    cfg = MODELS["llama_stacked"]
    tensors = dict(to_state_dict(cfg, random_params(cfg)[0]))
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].copy()
    tensors[name][0, 0] = np.nan
    with pytest.raises(ConfigError, match=f"{name}='nan or inf': must be finite"):
        loaded(cfg, tensors)


def test_one_tensor_at_a_time_is_on_the_host(tmp_path):
    """The peak of the host's arrays is the largest tensor's, and 10% at most."""
    sizes = dict(num_heads=4, num_kv_heads=2, mlp_width=1024, vocab_size=8_000)
    cfg = llama(4, 64, **sizes, scan=True)
    write_export(tmp_path / "hf", cfg, random_params(cfg)[0], "llama", 10**6)
    folder = HfFolder(tmp_path / "hf")
    folder.check(cfg, TASK)
    template = jax.eval_shape(cfg.make(TASK).init, jax.random.key(0))
    jax.block_until_ready(folder.load(cfg, template))  # compiled
    tracemalloc.start()
    params = jax.block_until_ready(folder.load(cfg, template))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sizes = [folder.read(name).nbytes for name in folder.files]
    assert sum(sizes) > 3 * max(sizes)
    assert max(sizes) <= peak <= 1.1 * max(sizes)
    assert sum(x.nbytes for x in jax.tree.leaves(params)) == sum(sizes)


def test_inspecting_a_folder(folder, say):
    code, printed, _ = say("inspect", folder)
    assert code == 0
    lines = printed.splitlines()
    assert lines[0].startswith(f"{folder}: llama, ")
    assert any("model.layers.*.mlp.up_proj.weight" in x and " 2 " in x for x in lines)
    data = json.loads(say("inspect", folder, "--json")[1])
    assert (data["refused"], data["model"]["rope_scaling"]["factor"]) == (None, 8.0)
    assert {tensor["dtype"] for tensor in data["tensors"]} == {"BF16"}
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"hidden_act": "relu"})
    assert "cannot be a parent here: hidden_act='relu'" in say("inspect", folder)[1]


def test_what_is_made_has_a_place(folder, tmp_path, say):
    (tmp_path / "file").write_text("")
    for out, said in (("file", "not exist yet"), ("file/x", "must be a directory")):
        code, _, error = say("import_hf", folder, tmp_path / out)
        assert code == 2 and error.count("\n") == 1 and said in error, error
    code, _, error = say("import_hf", folder, tmp_path / ("a" * 300))
    assert code == 2 and error.count("\n") == 1 and "File name too long" in error


@pytest.mark.parametrize("command", ["play", "watch", "export_hf"])
def test_a_folder_is_no_run(command, folder, tmp_path, say):
    options = [tmp_path / "out"] if command == "export_hf" else []
    code, printed, error = say(command, folder, *options)
    assert (code, printed) == (2, "") and error.count("\n") == 1, error
    assert "parity-jax import_hf makes a run of it" in error


def test_a_folder_with_two_sets_of_weights_is_refused(folder):
    cfg = MODELS["llama_scaled_tied"]
    write_weights(folder, to_state_dict(cfg, random_params(cfg)[0]), MAX_BYTES)
    with pytest.raises(FolderError, match="which one is meant"):
        HfFolder(folder).shapes()


def test_a_tensor_in_two_files_is_refused(folder):
    """Which of them is meant, the index does not say to everyone."""
    first, second, *_ = sorted(folder.glob("model-*.safetensors"))
    twice = load_file(first) | load_file(second)
    save_file(twice, second)
    with pytest.raises(FolderError, match=rf"is in {first.name}, as model.safetensors"):
        HfFolder(folder).shapes()


@pytest.mark.parametrize("dtype", [np.complex64, np.int8, np.bool_])
def test_types_of_numbers_that_are_not_read_are_refused(dtype, tmp_path):
    cfg = MODELS["llama"]
    tensors = dict(to_state_dict(cfg, random_params(cfg)[0]))
    name = "model.norm.weight"
    tensors[name] = tensors[name].astype(dtype)
    write_export(tmp_path, cfg, random_params(cfg)[0], "llama")
    write_weights(tmp_path, tensors.items(), MAX_BYTES)
    with pytest.raises(ConfigError, match=rf"{name}\.dtype='.*': must be F32, BF16"):
        HfFolder(tmp_path).load(cfg, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"original_max_position_embeddings": 4}, "original_max_position_embeddings=4"),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e6}},
            "rope_theta=",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
            "rope_parameters.factor=2.0: must be 8.0, as in rope",
        ),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_type='default': must be"),
    ],
)
def test_rotary_options_that_contradict_each_other_are_refused(change, message):
    """transformers takes one of them, whichever; logits would differ in silence."""
    kind = "llama_scaled_tied"
    config = to_hf_config(MODELS[kind], TASK, TASK_CONFIG, "llama")
    with pytest.raises(ConfigError, match=message):
        from_hf_config(config | change)


def test_a_model_that_knows_more_tokens_than_its_task(tmp_path, say, monkeypatch):
    """What it says of them is shown as their ids, in inspect and in play."""
    cfg = llama(1, 16, **TINY, vocab_size=64)
    write_export(tmp_path / "hf", cfg, random_params(cfg)[0], "llama")
    config = read_json(tmp_path / "hf" / "config.json")
    write_json(tmp_path / "hf" / "config.json", config)
    assert say("import_hf", tmp_path / "hf", tmp_path / "run")[0] == 0
    code, printed, error = say("inspect", tmp_path / "run", "--prompts=3")
    assert (code, error) == (0, "")
    assert re.search(r"<\d\d>", printed)
    monkeypatch.setattr(sys, "stdin", io.StringIO("+-++-\n"))
    code, printed, error = say("play", tmp_path / "run")
    assert (code, error) == (0, "")
    assert re.search(r"<\d\d>", printed)


@pytest.mark.parametrize(
    ("name", "value"),
    [("gradient_rows", 4), ("scan", True), ("dtype", "bfloat16"), ("init_std", 0.5)],
)
def test_what_weights_do_not_depend_on_may_be_set(folder, name, value):
    task = ParityConfig(4).make()
    cfg = HfFolder(folder).model(task, **{name: value})
    assert getattr(cfg, name) == value
    HfFolder(folder).check(cfg, task)
