"""Hugging Face: the same logits and answers in `transformers`, and back bit for bit."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.core import FrozenDict
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from tiny import tiny_experiment, tiny_gpt2, tiny_mistral
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments import export_hf, import_hf
from experiments.arguments import exit_code
from parity_jax.checkpoint import from_arrays, subtree, to_arrays
from parity_jax.config import (
    ConfigError,
    LinearConfig,
    MultiplicationConfig,
    ParityConfig,
)
from parity_jax.decode import sample
from parity_jax.huggingface import (
    from_hf_config,
    from_state_dict,
    to_hf_config,
    to_state_dict,
)
from parity_jax.models import make_model, response_logits
from parity_jax.results import read_json, write_json
from parity_jax.runs import check_run
from parity_jax.snapshot import RUN, open_run
from parity_jax.tasks import make_task
from parity_jax.tokenizer import to_tokenizer

TASK_CONFIG = ParityConfig(5)
TASK = make_task(TASK_CONFIG)
MODELS = {
    "gpt2": tiny_gpt2(depth=2),
    "gpt2_untied": tiny_gpt2(tie_embedding=False, mlp_width=24),
    "mistral": tiny_mistral(depth=2, mlp_width=24),
    "mistral_window_tied": tiny_mistral(sliding_window=3, tie_embedding=True),
}


def random_params(cfg, seed=0):
    """Every parameter is random: biases are not 0 and scales not 1."""
    model = make_model(cfg, TASK)
    template = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep=".")
    rng = np.random.default_rng(seed)
    arrays = {k: np.float32(rng.normal(size=x.shape)) for k, x in template.items()}
    arrays = {k: x + ("scale" in k) for k, x in arrays.items()}
    return arrays, {k: x.shape for k, x in template.items()}


def write_export(directory, cfg, arrays):
    """The files of an export."""
    directory.mkdir(exist_ok=True)
    save_file(
        to_state_dict(cfg, arrays),
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    write_json(directory / "config.json", to_hf_config(cfg, TASK, TASK_CONFIG))
    for name, value in zip(
        ("tokenizer", "tokenizer_config"), to_tokenizer(TASK), strict=True
    ):
        write_json(directory / f"{name}.json", value)


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """Config, parameters, directory, and what `transformers` makes of it."""
    cfg = MODELS[request.param]
    arrays, shapes = random_params(cfg)
    directory = tmp_path_factory.mktemp(request.param)
    write_export(directory, cfg, arrays)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert (
        type(theirs).__name__
        == to_hf_config(cfg, TASK, TASK_CONFIG)["architectures"][0]
    )
    assert not any(info.values()), info
    return cfg, arrays, shapes, directory, theirs


def test_logits_and_greedy_answers_are_the_same(exported):
    cfg, arrays, _, _, theirs = exported
    model = make_model(cfg, TASK)
    template = jax.eval_shape(model.init, jax.random.key(0))
    params = from_arrays(arrays, template)
    prompt_BxL = TASK.sample_prompts(jax.random.key(1), 32)
    shape = (32, 1, TASK.response_len)
    token_BxGxT = jax.random.randint(jax.random.key(2), shape, 0, TASK.vocab_size)
    ours = jax.jit(lambda *args: response_logits(model, *args))
    logits = np.asarray(ours(params, prompt_BxL, token_BxGxT))[:, 0]
    whole_BxS = torch.tensor(np.concatenate([prompt_BxL, token_BxGxT[:, 0]], 1))
    with torch.no_grad():
        expected = theirs(whole_BxS).logits[:, TASK.prompt_len - 1 : -1].numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits, expected, atol=1e-4)

    greedy = jax.jit(
        lambda params, prompt_BxL: sample(
            jax.random.key(0),
            model,
            params,
            prompt_BxL,
            jnp.zeros(1),
            TASK.response_len,
            TASK.short_len,
        ).token[:, 0]
    )
    answer_BxT = np.asarray(greedy(params, prompt_BxL))
    found = theirs.generate(
        torch.tensor(np.asarray(prompt_BxL)),
        do_sample=False,
        max_new_tokens=TASK.response_len,
    )[:, TASK.prompt_len :].numpy()
    missing = answer_BxT.shape[1] - found.shape[1]  # it stops when all have ended
    np.testing.assert_array_equal(answer_BxT, np.pad(found, ((0, 0), (0, missing))))
    assert len(np.unique(answer_BxT, axis=0)) > 1


def test_there_and_back_is_bit_identical(exported):
    cfg, arrays, shapes, directory, _ = exported
    assert from_hf_config(read_json(directory / "config.json")) == cfg
    tensors = load_file(directory / "model.safetensors")
    back = from_state_dict(cfg, tensors, shapes)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


def test_what_transformers_saves_comes_back(exported, tmp_path):
    """In bfloat16, and without the fields that are the defaults of the class."""
    cfg, arrays, _, _, theirs = exported
    copy.deepcopy(theirs).to(torch.bfloat16).save_pretrained(tmp_path / "hf")
    saved = read_json(tmp_path / "hf" / "config.json")
    assert from_hf_config(saved) == cfg
    assert import_hf.read_task("", saved) == TASK_CONFIG
    params = import_hf.read_params(tmp_path / "hf" / "model.safetensors", cfg, TASK)
    for name, array in to_arrays(params).items():
        rounded = torch.tensor(arrays[name]).to(torch.bfloat16).float().numpy()
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, rounded)


def test_tokenizer(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported[3])
    prompt_BxL = np.asarray(TASK.sample_prompts(jax.random.key(3), 4))
    texts = [TASK.to_text(prompt_L) for prompt_L in prompt_BxL]
    assert tokenizer(texts)["input_ids"] == prompt_BxL.tolist()
    assert tokenizer.batch_decode(prompt_BxL) == texts
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    answer = TASK.from_text("+-+.__")
    assert tokenizer.decode(answer, skip_special_tokens=True) == "+-+"
    with pytest.raises(Exception, match="WordLevel"):
        tokenizer("+x-")


def test_tokenizer_of_words(tmp_path):
    task = make_task(MultiplicationConfig(2))
    names = ("tokenizer", "tokenizer_config")
    for name, value in zip(names, to_tokenizer(task), strict=True):
        write_json(tmp_path / f"{name}.json", value)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "2 1 * 3 4||8 4 0 + 0 6 3 0 #### 8 0 4 0 ."
    token_L = task.from_text(text).tolist()
    assert tokenizer(text)["input_ids"] == token_L
    assert tokenizer.decode(token_L) == text.replace("||", " || ")


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
    with pytest.raises(ConfigError, match=r"must be GPT-2 .* or Mistral"):
        to_hf_config(cfg, TASK, TASK_CONFIG)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("gpt2", {"model_type": "llama"}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt2", {"layer_norm_epsilon": 1e-6}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("mistral", {"rms_norm_eps": 1e-6}),
        ("mistral", {"head_dim": 5}),
        ("mistral", {"rope_theta": 1e6}),
        ("mistral", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}),
    ],
)
def test_models_that_ours_cannot_be_are_refused(kind, change):
    config = to_hf_config(MODELS[kind], TASK, TASK_CONFIG)
    assert from_hf_config(config) == MODELS[kind]
    name = next(iter(change))
    with pytest.raises(ConfigError, match=name if name[:5] != "rope_" else "rope_t"):
        from_hf_config(config | change)


def test_wrong_tensors_are_named():
    cfg = MODELS["mistral"]
    arrays, shapes = random_params(cfg)
    tensors = to_state_dict(cfg, arrays)
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        "is missing": {k: x for k, x in tensors.items() if k != name},
        r"must have shape \(24, 16\)": tensors | {name: tensors[name].T},
        "is unknown": tensors | {"model.layers.2.mlp.up_proj.weight": tensors[name]},
    }
    for message, changed in changes.items():
        with pytest.raises(ConfigError, match=message):
            from_state_dict(cfg, changed, shapes)


def test_a_member_goes_out_and_starts_another_run(tmp_path, capsys):
    run, out, back = tmp_path / "run", tmp_path / "hf", tmp_path / "back"
    runs = FrozenDict({RUN: tiny_experiment().runs["pretrain"]})
    experiment = dataclasses.replace(tiny_experiment(), runs=runs)
    import_hf.write_run(run, experiment, None)
    assert exit_code(export_hf.main, [str(run), str(out)]) == 2
    error = capsys.readouterr().err
    assert error == "error: member='': must choose one of seed=0; seed=1\n"
    assert not out.exists()
    command = [str(run), "--member=seed=1", str(out)]
    assert exit_code(export_hf.main, command) == 0
    assert exit_code(export_hf.main, command) == 2  # it exists
    assert exit_code(import_hf.main, [str(out), str(back)]) == 0
    original, copied = open_run(run, 0, {"seed": 1}), open_run(back)
    assert copied.experiment.model == original.experiment.model
    expected = subtree(original.arrays, "params")
    found = subtree(copied.arrays, "params")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    only = FrozenDict({"seed": 0})
    child = dataclasses.replace(runs[RUN], parent=str(back), parent_member=only)
    runs = FrozenDict({"child": child})
    check_run(dataclasses.replace(experiment, runs=runs), "child")


def test_bad_imports_cost_one_line(tmp_path, capsys):
    cfg = MODELS["gpt2"]
    write_export(tmp_path / "hf", cfg, random_params(cfg)[0])
    out = tmp_path / "out"

    def said(*options):
        assert exit_code(import_hf.main, [str(tmp_path / "hf"), str(out), *options])
        (line,) = capsys.readouterr().err.splitlines()
        assert not out.exists()
        return line

    assert "must be JSON" in said("--task={")
    assert "task.num_bitz" in said('--task={"kind": "parity", "num_bitz": 3}')
    assert "transformer.wpe" in said('--task={"kind": "parity", "num_bits": 9}')
    path = tmp_path / "hf" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "cannot be read" in said()
    config = read_json(tmp_path / "hf" / "config.json")
    write_json(tmp_path / "hf" / "config.json", config | {"parity_jax": {}})
    assert "the model does not tell it" in said()


def test_the_linear_model_is_refused(tmp_path):
    cfg = LinearConfig()
    with pytest.raises(ConfigError, match="no counterpart"):
        export_hf.transformer_config(cfg)


def test_a_tied_head_must_be_the_embedding():
    cfg = MODELS["gpt2"]
    arrays, shapes = random_params(cfg)
    tensors = to_state_dict(cfg, arrays)
    head = tensors["transformer.wte.weight"]
    found = from_state_dict(cfg, tensors | {"lm_head.weight": head}, shapes)
    np.testing.assert_array_equal(found["embed.embedding"], head)
    with pytest.raises(ConfigError, match=r"lm_head\.weight.*is unknown"):
        from_state_dict(cfg, tensors | {"lm_head.weight": 2 * head}, shapes)
