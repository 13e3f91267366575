"""Rows from files, their tokens and templates; what is wrong with them in one line."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest
from small_texts import gsm8k_like, path_of, small_text, text_experiment, write_rows
from tiny import tiny_gpt2

from launch.plan import what_runs
from parity_jax.config import ConfigError, UserCodeError, from_dict, to_dict
from parity_jax.models import RecurrentConfig
from parity_jax.runs import resolve
from parity_jax.tasks import TaskConfig, TextConfig
from parity_jax.tasks.text import (
    FileSource,
    GsmSymbolicSource,
    Row,
    SourceConfig,
    Splits,
    TemplateConfig,
    TokenizerConfig,
    WordedSource,
    marked,
    unmarked,
)
from parity_jax.tasks.text.answers import wrong_answer
from parity_jax.tasks.text.rows import last_boxed, read_rows
from parity_jax.tasks.text.task import has_ended_with
from parity_jax.tasks.text.tokenizer import from_folder, trained
from parity_jax.tasks.text.verify import exact, gsm8k, number_of
from parity_jax.tasks.text.worded import WORDS, worded_rows
from parity_jax.testing import check_task

NINES = "9" * 40
PLAIN = {"prompt": "2 + 2?", "solution": "Two and two.", "answer": "4"}


def test_adapters(tmp_path):
    file = write_rows(tmp_path / "g.jsonl", gsm8k_like(1))
    row = Row("Ida has 3 figs. Twice that?", "It is 2*3=6.", "6")
    assert read_rows("f", file, "gsm8k") == [row]
    problem = {"problem": "x?", "solution": "So \\boxed{1}, or \\boxed{\\frac{1}{2}}."}
    file = write_rows(tmp_path / "m.jsonl", [problem])
    (row,) = read_rows("f", file, "math")
    assert row.answer == "\\frac{1}{2}"
    assert last_boxed("\\boxed{1") is last_boxed("1") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so $\\boxed 7$.", "7"),
        ("$\\fbox{7}$", "7"),
        ("$\\boxed {7}$", "7"),
        ("$\\boxed{6}$, no, $\\boxed 7$", "7"),
        ("$\\boxed 6$, no, $\\boxed{7}$", "7"),
        ("$\\boxed{\\left\\{7\\right.}$", "\\left\\{7\\right."),
        ("$\\boxed{}$", None),
        ("$\\boxed $", None),
    ],
)
def test_every_form_of_a_box_in_math_is_read(text, answer):
    assert last_boxed(text) == answer


def test_tokens_that_the_tokenizer_does_not_have_are_told():
    """As a model may that has more: they are no text, and none is paid for them."""
    tokenizer = trained(["2 + 2", "#### 4"], 300)
    ids = tokenizer.encode(["#### 4"])[0]
    unknown = tokenizer.vocab_size + 3
    assert tokenizer.decode([unknown, *ids, unknown]) == f"<{unknown}>#### 4<{unknown}>"
    answered = has_ended_with(tokenizer)
    assert answered([*ids, 1]) == "#### 4"
    assert answered([*ids, unknown, 1]) == f"#### 4<{unknown}>"


def test_parquet_rows_are_those_of_jsonl(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = __import__("pyarrow").Table.from_pylist(gsm8k_like())
    parquet.write_table(table, tmp_path / "rows.parquet")
    file = write_rows(tmp_path / "rows.jsonl", gsm8k_like())
    found = read_rows("f", str(tmp_path / "rows.parquet"), "gsm8k")
    assert found == read_rows("f", file, "gsm8k")
    (tmp_path / "rows.parquet").write_text("PAR1junkPAR1")
    with pytest.raises(ConfigError, match=r"^f='.*rows.parquet': cannot be read: "):
        read_rows("f", str(tmp_path / "rows.parquet"), "gsm8k")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_rows("f", str(tmp_path / "none.parquet"), "gsm8k")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"prompt": "a", "solution": "b"}', "row 2: field 'answer' must be a text, n"),
        ('{"prompt": 3, "solution": "b", "answer": "c"}', "row 2: field 'prompt' must"),
        ('{"prompt": " ", "solution": "b", "answer": "c"}', "row 2: field 'prompt' mu"),
        ("[1]", "row 2: must be a mapping"),
        ('{"answer": "a", "answer": "b"}', "row 2: no JSON: 'answer' stands twice"),
        ("{", "row 2: no JSON"),
        ('{"prompt": "\\ud800", "solution": "b", "answer": "c"}', "half a surrogate"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, line, told):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(PLAIN) + "\n" + line + "\n")
    with pytest.raises(ConfigError) as error:
        TextConfig(FileSource(str(file), num_test=1)).resolved()
    text = str(error.value)
    assert text.startswith("task.source.train_file='")
    assert told in text
    assert "\n" not in text


@pytest.mark.parametrize("path", ["~no.body/rows.jsonl", "x" * 300])
def test_a_path_that_no_file_can_have_is_named(path):
    """By the field that has it."""
    few = WordedSource(num_train=4, num_test=2)
    for cfg, field in (
        (TextConfig(FileSource(path, num_test=1)), "source.train_file"),
        (TextConfig(few, TokenizerConfig(path)), "tokenizer.folder"),
    ):
        with pytest.raises(ConfigError, match=rf"^task\.{field}='{path[:99]}"):
            cfg.resolved()


@pytest.mark.parametrize(
    ("rows", "num_test", "told"),
    [
        ([], 1, "must have at least one row"),
        ([PLAIN], 1, "must have at least two rows without test_file"),
        ([PLAIN] * 3, 0, "must be in [1, 2] without test_file"),
    ],
)
def test_an_empty_split_is_refused(tmp_path, rows, num_test, told):
    file = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ConfigError, match=r"task\.source") as error:
        TextConfig(FileSource(file, num_test=num_test)).resolved()
    assert told in str(error.value)


def test_content_is_recorded_and_compared(tmp_path):
    """Overlap of the splits is counted; edited rows are another task."""
    rows = gsm8k_like()
    rows[-1] = {**rows[0], "question": rows[0]["question"].upper()}
    cfg = small_text(tmp_path)
    write_rows(tmp_path / "rows.jsonl", rows)
    cfg = cfg.resolved()
    assert (cfg.content.num_train, cfg.content.num_test) == (5, 3)
    assert cfg.content.num_overlapping == 1
    assert from_dict(TaskConfig, to_dict(cfg)) == cfg
    again = small_text(tmp_path, bad_rows="drop")  # rows of before; read anew
    assert again.resolved().content.num_overlapping == 0
    write_rows(tmp_path / "rows.jsonl", rows[:-2] + rows[-1:])
    edited = TextConfig(cfg.source, cfg.tokenizer, max_prompt=99, content=cfg.content)
    with pytest.raises(ConfigError, match=r"task\.content\.sha256=.*are others now"):
        edited.make()


@pytest.mark.parametrize(
    ("verifier", "template", "part"),
    [
        ("exact", unmarked(), "template.long=' {solution}': verifier='exact' does not"),
        ("exact", marked(long="{solution} so {answer}"), "pay its demonstration"),
        ("gsm8k", marked(short="#### {answer} dollars"), "template.short='#### {answ"),
        ("math", marked(long="{solution} or {prompt}"), "template.long="),
    ],
)
def test_demonstrations_that_earn_nothing_are_refused(
    tmp_path, verifier, template, part
):
    """A model that learns them by heart would have an accuracy of 0."""
    rows = [PLAIN | {"prompt": f"p{n}", "answer": f"{n}"} for n in range(4)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    tokens = TokenizerConfig(vocab_size=300)
    cfg = TextConfig(FileSource(file, num_test=1), tokens, template, verifier=verifier)
    with pytest.raises(ConfigError, match=re.escape(part)):
        cfg.resolved()


def test_rows_that_are_too_long_or_unreadable(tmp_path):
    """Refused with their number, or dropped and counted; never cut."""
    whole = small_text(tmp_path).make()
    longest = whole.data.prompt_len.max()
    with pytest.raises(ConfigError, match=r"max_prompt=\d+: 2 of 8 rows have longer"):
        small_text(tmp_path, max_prompt=int(longest) - 1).resolved()
    cfg = small_text(tmp_path, max_prompt=int(longest) - 1, bad_rows="drop").resolved()
    assert (cfg.content.num_dropped, cfg.content.num_train) == (2, 4)
    rows = gsm8k_like()
    rows[0]["answer"] = "It is much.\n#### much"
    file = write_rows(tmp_path / "bad.jsonl", rows)
    fields = (FileSource(file, num_test=3, adapter="gsm8k"), whole.config.tokenizer)
    with pytest.raises(ConfigError, match=r"verifier='gsm8k': 1 of .*\['much'\]"):
        TextConfig(*fields, verifier="gsm8k").resolved()
    cfg = TextConfig(*fields, verifier="gsm8k", bad_rows="drop").resolved()
    assert cfg.content.num_dropped == 1
    file = write_rows(tmp_path / "mark.jsonl", [PLAIN, PLAIN | {"answer": "1 #### 2"}])
    cfg = TextConfig(FileSource(file, num_test=1), whole.config.tokenizer)
    with pytest.raises(ConfigError, match=r"verifier='exact': 1 of .*'1 #### 2'"):
        dataclasses.replace(cfg, verifier="exact").resolved()


def test_the_task_keeps_the_contract(tmp_path):
    check_task(small_text(tmp_path))


def test_learned_positions_are_refused_for_prompts_of_several_lengths(tmp_path):
    task = small_text(tmp_path).make()
    model = tiny_gpt2().make(task)
    with pytest.raises(
        ConfigError, match=r"^model.positions='learned': must be rotary"
    ):
        jax.eval_shape(
            lambda key: model.prompt_pass(model.init(key), task.eval_prompts),
            jax.random.key(0),
        )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"prompt": "{question}"}, "prompt='{question}': must be a text with {prompt}"),
        ({"long": "{"}, "must be a text with {solution}"),
        ({"short": "{solution} {answer}"}, "no braces but it or {prompt};"),
        ({"prompt": "{prompt} {answer}"}, "with {prompt}, and no braces but it;"),
        ({"prompt": "{prompt:{answer}}"}, "must be a text with {prompt}"),
        ({"prompt": "{prompt:d}"}, "must be a text with {prompt}"),
        ({"long": "{solution!x}"}, "must be a text with {solution}"),
    ],
)
def test_a_bad_template_is_refused(fields, told):
    with pytest.raises(ConfigError) as error:
        TemplateConfig(**fields)
    assert told in str(error.value)


def test_a_long_answer_must_not_begin_like_a_short_one(tmp_path):
    both = TemplateConfig(long="#### {solution}\n#### {answer}")
    with pytest.raises(ConfigError, match="begins as the short ones do"):
        small_text(tmp_path, template=both).resolved()
    other = TemplateConfig(long="{solution}\nSo {answer}")
    with pytest.raises(ConfigError, match=r"task\.verifier='tokens': must be another"):
        small_text(tmp_path, template=other).resolved()


def test_the_tokenizer_reads_every_text_back():
    """Its tokens are the same every time; special ones are never made of text."""
    texts = [row["question"] for row in gsm8k_like()]
    one, two = trained(texts, 300), trained(texts, 300)
    assert one.json == two.json
    strange = ["naïve ½ 🂡", "שלום עולם", "مرحبا", "a\u0000b\r\n\t", "x" * 100_000, "١٢"]
    for text, ids in zip(strange, one.encode(strange), strict=True):
        assert one.decode(ids) == text
        assert not {one.pad_id, *one.end_ids} & {*ids}


def test_worded_parity_says_what_it_means():
    """The state is told after each person, by hand for every wording."""
    for kind, words in WORDS.items():
        for row in worded_rows(20, 6, kind, 2, True, 3):
            state, told, asides = 0, [], 0
            for sentence in row.prompt.removeprefix(words.begin).split(".")[:-1]:
                name, _, rest = sentence.strip().partition(" ")
                forms = {f"{{}} {rest}."}
                asides += bool(forms & {*words.aside})
                if forms & {*words.aside}:
                    continue
                assert forms & {*words.change, *words.stay}
                state ^= bool(forms & {*words.change})
                told.append((words.states[state], name))
            assert asides == 2
            assert len(told) == 6
            steps = [f"{state} after {name}." for state, name in told[:-1]]
            assert row.solution == " ".join([*steps, told[-1][0]])
            assert row.answer == told[-1][0]
    assert worded_rows(3, 4, "mixed", 0, False, 1) == worded_rows(
        3, 4, "mixed", 0, False, 1
    )


def test_a_short_demonstration_may_be_the_longer_one_if_it_is_marked(tmp_path):
    rows = [PLAIN | {"prompt": f"p{n}", "answer": f"{n}"} for n in range(4)]
    source = FileSource(write_rows(tmp_path / "rows.jsonl", rows), num_test=1)
    tokens = TokenizerConfig(vocab_size=258)
    wordy = marked(short="#### well, I would say, all in all, that it is #### {answer}")
    task = TextConfig(source, tokens, wordy, verifier="exact").make()
    short, worked = task.solution(task.eval_prompts, task.data)
    assert short.shape == worked[:, 0].shape == (1, task.format.max_len)
    both_BxGxT = jnp.concatenate([worked, short[:, None]], 1)
    assert task.is_long(both_BxGxT).tolist() == [[True, False]]
    assert task.rewards["e2e"](task.eval_prompts, both_BxGxT, task.data).all()
    bare = unmarked(short=" {answer}, as I said, without a doubt")
    cfg = TextConfig(source, tokens, bare, verifier="tokens")
    with pytest.raises(ConfigError, match="without a mark, the long ones must be long"):
        cfg.resolved()


def test_options_of_processes_are_refused_where_none_verifies():
    for fields in ({"num_processes": 4}, {"timeout_seconds": 1.0}):
        (name,) = fields
        for verifier in ("tokens", "exact", "gsm8k"):
            allowed = f"with verifier='{verifier}' and no text_rewards"
            with pytest.raises(ConfigError, match=f"^{name}=.*: must be .* {allowed}$"):
                TextConfig(verifier=verifier, **fields)
        assert TextConfig(verifier="math", **fields) != TextConfig(verifier="math")
        TextConfig(text_rewards=("mine:judge",), **fields)


def test_the_kind_shows_in_the_first_token_or_not():
    source = WordedSource(num_bits=4, named=True, num_train=40, num_test=8)
    for template, shows in ((TemplateConfig(), True), (unmarked(), False)):
        task = TextConfig(source, TokenizerConfig(vocab_size=400), template).make()
        firsts = [{*task.data.long[:, 0].tolist()}, {*task.data.short[:, 0].tolist()}]
        assert (firsts[0] == firsts[1]) is not shows
        assert template.greedy_threshold == (1 / 2 if shows else 1 / 3)
        prompt = task.eval_prompts
        responses = task.solution(prompt, task.data)
        both_BxGxT = jnp.stack([responses.worked[:, 0], responses.short], 1)
        found = task.diagnostics(prompt, both_BxGxT, task.data)
        assert ("short_begun" in found) is not shows
    short_BxG, begun_BxG = found["short_begun"]
    assert short_BxG.tolist() == [[0, 1]] * 8
    agrees = [row.solution.split()[0] == row.answer for row in task.splits.test]
    assert begun_BxG.tolist() == [[True, is_same] for is_same in agrees]
    assert 0 < sum(agrees) < 8


def test_numbers_of_gsm8k():
    right = {"1,234": "1234", "$5.00": "5", "-3": " -3 ", "+7": "7", ".5": "0.50"}
    for given, answer in right.items():
        assert gsm8k(answer, f"12 #### 9\n#### {given}") == (1.0, "judged")
        assert gsm8k("8", f"#### {given}") == (0.0, "judged")
    for given in ("five", "5 apples", "", "1e5", "\u0665", "5 <end>"):
        assert gsm8k("5", f"#### {given}") == (0.0, "unreadable")
    for response in ("5", "5 ###"):
        assert gsm8k("5", response) == (0.0, "unreadable")
    for given in ("4\n2", "4 2", "4, 2", "4,2", "42,", "$$42", ",42", "1,0042", "4 $2"):
        assert gsm8k("42", f"#### {given}") == (0.0, "unreadable")
    assert number_of("9" * 101) is None
    assert exact("on", "off\n#### on ").value == 1
    assert exact("on", "#### on.").value == exact("on", "on").value == 0


@pytest.mark.parametrize(
    ("verifier", "template", "said"),
    [
        # as exact tells answers apart, numbers are texts
        (
            "exact",
            {},
            {"#### 7": "7", "#### 7.0": "7.0", "#### 1, 2": "1, 2", "7": None},
        ),
        ("gsm8k", {}, {"#### $7.0": "7", "#### 7 apples": None, "7": None}),
        (
            "gsm8k",
            {},
            {"#### -0.0": "0", "#### 100": "100", f"#### {'9' * 40}": "9" * 40},
        ),
        # without ####: what stands behind the template's own mark
        (
            "tokens",
            {"short": "So: {answer}.", "long": "{solution} So: {answer}."},
            {"It is. So: 7.": "7", "So: 7.0.": "7.0", "#### 7": None},
        ),
        (
            "tokens",
            {"short": "{answer}", "long": "{solution}"},
            {"It is 7": "is 7", "": None},
        ),
        ("tokens", {"short": "{{x}} {answer}"}, {"{x} 7": "7", "7": None}),
        ("math", {}, {"is \\boxed{7}": "7", "#### 7": "7", "7": None}),
    ],
)
def test_what_a_response_answers(verifier, template, said):
    """Answers are as many as the verifier tells apart."""
    cfg = TemplateConfig(**template)
    assert {t: wrong_answer(verifier, cfg, t, "no 8") for t in said} == said


def test_tokenizers_that_came_out_the_same_are_one_job(tmp_path):
    """The rows have fewer pairs than were asked for; rows may lie anywhere."""
    found = []
    (tmp_path / "other").mkdir()
    for folder, size in (("", 5000), ("", 6000), ("other", 5000), ("", 270)):
        cfg = small_text(tmp_path / folder)
        cfg = dataclasses.replace(cfg, tokenizer=TokenizerConfig(vocab_size=size))
        assert cfg.make().vocab_size < 5000
        found.append(what_runs(resolve(text_experiment(cfg))))
    assert found[0] == found[1] == found[2] != found[3]


def test_rows_that_changed_are_read_again(tmp_path):
    """In one process, by what the files hold."""
    cfg, rows = small_text(tmp_path), gsm8k_like()
    before = cfg.resolved().content
    rows[0] = {**rows[0], "question": rows[0]["question"].replace("Ida", "Ada")}
    write_rows(tmp_path / "rows.jsonl", rows)
    after = cfg.resolved()
    assert after.content != before
    assert "Ada" in after.make().splits.train[0].prompt


@dataclasses.dataclass(frozen=True)
class OwnSource(SourceConfig):
    """Rows with one thing wrong."""

    wrong: str = ""

    def splits(self):
        rows = [Row(f"p{n}", f"it is {n}", f"{n}") for n in range(4)]
        if self.wrong == "raises":
            raise KeyError("mine")
        if self.wrong == "number":
            rows[2] = Row("p2", "it is", 2)
        if self.wrong == "empty":
            rows[2] = Row("p2", "it is", " ")
        if self.wrong == "tuple":
            return rows[:3], rows[3:]
        return Splits(tuple(rows[:3]), tuple(rows[3:]))


@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ("raises", UserCodeError, "OwnSource.splits: KeyError: 'mine'"),
        ("number", ConfigError, "must be a Row of three texts"),
        ("empty", ConfigError, "must have a prompt and an answer"),
        ("tuple", ConfigError, "must return parity_jax's Splits"),
    ],
)
def test_rows_of_ones_own_are_looked_at(wrong, error, told):
    tokens = TokenizerConfig(vocab_size=258)
    assert TextConfig(OwnSource(), tokens).resolved().content.num_train == 3
    with pytest.raises(error) as info:
        TextConfig(OwnSource(wrong), tokens).resolved()
    assert told in str(info.value) and "OwnSource.splits" in str(info.value)


@pytest.mark.parametrize("model", [tiny_gpt2(), RecurrentConfig(1, 16)])
def test_models_of_one_length_are_refused_at_once(tmp_path, model):
    with pytest.raises(ConfigError, match="prompts are not of one length"):
        resolve(text_experiment(small_text(tmp_path), model=model))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (lambda: TokenizerConfig(vocab_size=2**40), "must be at most 1048576"),
        (lambda: TextConfig(max_response=10**12), "must be at most 1048576"),
        (lambda: WordedSource(seed=-1), "must be in [0, 2147483647]"),
        (lambda: GsmSymbolicSource(seed=2**31), "must be in [0, 2147483647]"),
    ],
)
def test_sizes_that_cannot_be_are_refused(fields, told):
    with pytest.raises(ConfigError) as error:
        fields()
    assert told in str(error.value)


def test_what_no_text_can_hold_is_no_prompt(tmp_path):
    task = small_text(tmp_path).make()
    with pytest.raises(ValueError, match="must be a text that UTF-8 can hold"):
        task.read_prompt("a\udcff")


def test_rows_of_gsm_symbolic():
    """Their solutions are right, without the mark and without the instruction."""
    pytest.importorskip("reasoning_gym", reason="the optional package reasoning-gym")
    source = GsmSymbolicSource(60, 20)
    splits = source.splits()
    assert (len(splits.train), len(splits.test)) == (60, 20)
    assert splits == source.splits()
    for row in splits.rows:
        assert gsm8k(row.answer, f"{row.solution}\n#### {row.answer}").value == 1
        assert "####" not in row.solution
        assert "Give the result" not in row.prompt


def test_gsm8k_itself():
    """Every gold solution is right, none is with another number."""
    folder = path_of("GSM8K", "folder of GSM8K's train.jsonl and test.jsonl")
    template, count = TemplateConfig(), 0
    for name in ("train", "test"):
        for row in read_rows(name, str(folder / f"{name}.jsonl"), "gsm8k"):
            text = template.long.format(**row._asdict())
            assert "<<" not in text
            assert gsm8k(row.answer, text) == (1.0, "judged")
            number = number_of(row.answer)
            assert gsm8k(str(number + 1), text) == (0.0, "judged")
            assert gsm8k(row.answer, row.solution).value == 0
            count += 1
    assert count == 8792


def test_a_real_tokenizer_reads_gsm8k_back():
    folder = path_of("GSM8K", "folder of GSM8K's train.jsonl and test.jsonl")
    tokenizer = from_folder(str(path_of("SMOLLM2", "folder of SmolLM2")))
    rows = read_rows("train", str(folder / "train.jsonl"), "gsm8k")
    for texts in ([row.prompt for row in rows], [row.solution for row in rows]):
        for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
            assert tokenizer.decode(ids) == text
