"""The tokenizer of a model's folder: first token, ends, padding, templates of chats."""

import json
from dataclasses import replace

import pytest
from small_texts import small_text, text_experiment, tiny_folder, write_rows
from transformers import AutoTokenizer

from parity_jax.config import ConfigError
from parity_jax.models.huggingface import HfFolder, to_tokenizer
from parity_jax.runs import resolve
from parity_jax.tasks import ParityConfig, TextConfig
from parity_jax.tasks.text import FileSource, TemplateConfig, TokenizerConfig
from parity_jax.tasks.text.tokenizer import from_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_folder(tmp_path_factory.mktemp("model")))


def test_ends_and_padding(folder):
    """All that any file names end a response; the pad, an end there, is another one."""
    tokenizer = from_folder(folder)
    assert tokenizer.end_ids == (1, 2)
    assert tokenizer.pad_id not in tokenizer.end_ids
    assert tokenizer.bos_id == 0


@pytest.mark.parametrize("form", ["plain", "chat"])
def test_prompts_begin_once(folder, tmp_path, form):
    """As transformers writes them, in plain text and by the template of a chat."""
    template = TemplateConfig(form=form)
    fields = {"template": template, "tokenizer": TokenizerConfig(folder=folder)}
    task = replace(small_text(tmp_path), **fields).make()
    theirs = AutoTokenizer.from_pretrained(folder)
    for place, row in enumerate(task.splits.rows):
        if form == "chat":
            message = [{"role": "user", "content": row.prompt}]
            expected = theirs.apply_chat_template(
                message, add_generation_prompt=True, return_dict=False
            )
        else:
            expected = theirs(row.prompt + "\n")["input_ids"]
        length = task.data.prompt_len[place]
        ids = task.data.prompt[place, task.prompt_len - length :].tolist()
        assert ids == expected
        assert ids.count(task.tokenizer.bos_id) == 1
        assert not {*ids} & {*task.format.end_ids}


def test_what_is_special_in_a_text_is_seen(folder, tmp_path):
    """An end within a question is no end; one within a solution is refused."""
    fields = {"tokenizer": TokenizerConfig(folder=folder)}
    cfg = replace(small_text(tmp_path), **fields)
    ends = TemplateConfig(long="{solution}<|end|>\n#### {answer}")
    with pytest.raises(ConfigError, match="must not be in a demonstration: it ends it"):
        replace(cfg, template=ends).resolved()


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    """One that has more tokens than the embedding has rows."""
    fields = {"tokenizer": TokenizerConfig(folder=folder)}
    task = replace(small_text(tmp_path), **fields)
    model = HfFolder(folder).model(task.make())
    assert model.vocab_size == 300  # the tokenizer may have fewer
    less = task.make().vocab_size - 1
    smaller = text_experiment(task, model=replace(model, vocab_size=less))
    with pytest.raises(ConfigError, match=rf"model\.vocab_size={less}: must be 0 "):
        resolve(smaller)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: (p / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda p: (p / "tokenizer.json").write_text("{"), "cannot be read"),
        (lambda p: (p / "config.json").write_text("{"), "damaged"),
        (
            lambda p: (p / "tokenizer_config.json").write_text(
                '{"eos_token": {"x": 1}}'
            ),
            "tokenizer_config.json: eos_token={'x': 1}: must be a text",
        ),
        (lambda p: (p / "config.json").write_text("[]"), "damaged: must be a mapping"),
        *(
            (
                lambda p, ids=ids: (p / "generation_config.json").write_text(
                    f'{{"eos_token_id": {ids}}}'
                ),
                "generation_config.json: eos_token_id=",
            )
            for ids in ("-1", "true", "[1, 9999]", '"1"')
        ),
        (
            lambda p: (p / "chat_template.jinja").write_bytes(b"\xff"),
            "chat_template.jinja cannot be read",
        ),
    ],
)
def test_a_damaged_folder_is_refused(folder, tmp_path, spoil, told):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        text = (HfFolder(folder).path / name).read_text()
        (tmp_path / name).write_text(text)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=r"tokenizer\.folder") as error:
        from_folder(str(tmp_path))
    assert told in str(error.value)


def words_folder(path, known, normalizer=None):
    """A tokenizer of a few words; all others are one to it."""
    import tokenizers

    vocab = ["<unk>", "<end>", "####", *known]
    model = tokenizers.models.WordLevel({w: i for i, w in enumerate(vocab)}, "<unk>")
    inner = tokenizers.Tokenizer(model)
    if normalizer:
        inner.normalizer = getattr(tokenizers.normalizers, normalizer)()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    inner.save(str(path / "tokenizer.json"))
    options = {"eos_token": "<end>", "unk_token": "<unk>"}
    (path / "tokenizer_config.json").write_text(json.dumps(options))
    return TokenizerConfig(folder=str(path))


def test_a_tokenizer_that_loses_what_is_asked_or_answered_is_refused(tmp_path):
    """It would pay any answer for another, or none."""
    rows = [
        {"prompt": f"p{n}", "solution": "so it is", "answer": a}
        for n, a in enumerate(("On", "Off", "On", "Off"))
    ]
    source = FileSource(write_rows(tmp_path / "rows.jsonl", rows), num_test=1)
    said, asked = ["so", "it", "is", "on", "off"], [row["prompt"] for row in rows]

    def task(number, *tokenizer, verifier="tokens"):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        return TextConfig(source, words_folder(folder, *tokenizer), verifier=verifier)

    for number, cfg, told in (
        (1, ([*said, *asked],), "gives the answers '#### On' and '#### Off' the same"),
        (2, ([*said, "On", "Off"],), "gives the questions 'p0' and 'p1' the same"),
    ):
        with pytest.raises(ConfigError, match=told):
            task(number, *cfg).resolved()
    cfg = task(3, [*said, *asked], "Lowercase", verifier="exact")
    told = "does not pay its demonstration '.*#### on' of the answer 'On'"
    with pytest.raises(ConfigError, match=told):
        cfg.resolved()
    task(4, [*said, *asked, "On", "Off"]).resolved()


def test_one_of_both_tokenizers_is_named():
    for fields in ({}, {"folder": "x", "vocab_size": 300}, {"vocab_size": 9}):
        with pytest.raises(ConfigError):
            TokenizerConfig(**fields)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('system only') }}", "template says: system only"),
        ("{% if %}", "fails by the model's template: TemplateSyntaxError"),
        ("{{ nobody.text }}", "UndefinedError: 'nobody' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_template_that_fails_is_told(folder, tmp_path, template, told):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text((HfFolder(folder).path / name).read_text())
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=r"^template\.form='chat': ") as error:
        from_folder(str(tmp_path)).chat("hi")
    assert told in str(error.value)


@pytest.mark.parametrize("template", ["null", '[{"name": "x", "template": "y"}]'])
def test_a_template_of_a_chat_matters_to_chats(folder, tmp_path, template):
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_text((HfFolder(folder).path / name).read_text())
    options = f'{{"eos_token": "<|end|>", "chat_template": {template}}}'
    (tmp_path / "tokenizer_config.json").write_text(options)
    tokenizer = from_folder(str(tmp_path))
    assert tokenizer.json and tokenizer.encode(["hi"])
    with pytest.raises(ConfigError, match=r"^template\.form='chat': "):
        tokenizer.chat("hi")


def test_words_that_a_tokenizer_does_not_know_cost_one_line(tmp_path):
    """One of a task's own words, which knows no others."""
    tokenizer, options = to_tokenizer(ParityConfig(4).make())
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    cfg = replace(small_text(tmp_path), tokenizer=TokenizerConfig(folder=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"^task\.text='.+': has no tokens in token"):
        cfg.resolved()


def test_a_date_does_not_come_from_the_clock(folder, tmp_path):
    """A template that asks for today's date gets the same one every day."""
    for file in HfFolder(folder).path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    asks = "{{ date_string }}{{ messages[0]['content'] }}"
    (tmp_path / "chat_template.jinja").unlink()
    options = json.loads((tmp_path / "tokenizer_config.json").read_text())
    options["chat_template"] = asks
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    assert from_folder(str(tmp_path)).chat("hi") == "26 Jul 2024hi"
