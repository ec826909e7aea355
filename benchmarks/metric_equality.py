"""Does every metric give what its official implementation gives? On real data, with answers spoilt by rule.

    python benchmarks/metric_equality.py --data DATA --squad compute_score.py \\
        --codexglue CodeXGLUE --wikisql WikiSQL [--nltk-data FOLDER]

DATA holds the data sets as Parquet in the layout of the hub. The official code is not part of this
project: ``compute_score.py`` is that of metrics/squad_v2 in huggingface/evaluate, SQuAD's
evaluate-v2.0.py; CodeXGLUE and WikiSQL are checkouts of microsoft/CodeXGLUE and salesforce/WikiSQL, of
which the latter needs the packages records and babel. scikit-learn, sacrebleu, rouge-score and NLTK are
called as installed. FOLDER holds NLTK's wordnet and punkt_tab; without it ``meteor`` and the comparison
of sentences are left out. WikiSQL's tables have no rows in the slice: rows are made here, of which some
fulfil the references' conditions.

A reference becomes a prediction by its number: kept, words left out, shuffled, cut, emptied, another's, or
said twice. Written are both values, their difference, and the largest difference of an item.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import math
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from rankdrift import files, registry
from rankdrift.metrics import Answered
from rankdrift.metrics._meteor import tokens
from rankdrift.metrics._sentences import sentences
from rankdrift.metrics._wikisql import AGGREGATIONS, OPERATORS, parse, read_gold

HERE = Path(__file__).resolve().parent
PACKAGES = ("scikit-learn", "sacrebleu", "rouge-score", "nltk", "evaluate", "records", "babel")


def spoil(text: str, number: int, other: str) -> str:
    """Return what becomes of the reference of this number."""
    words = text.split(" ")
    if number % 7 == 1:
        return " ".join(word for i, word in enumerate(words) if i % 3 != 1)
    if number % 7 == 2:
        return " ".join(random.Random(number).sample(words, len(words)))
    return (text, "", "", " ".join(words[: len(words) // 2]), "", other, f"{text} {text}")[number % 7]


def spoilt(texts: Sequence[str]) -> list[str]:
    """Return a prediction for every reference; a shift of one gives others'."""
    return [spoil(text, i, texts[i - 1]) for i, text in enumerate(texts)]


def compared(
    name: str,
    predictions: Sequence[Any],
    answers: Sequence[Any],
    official: float,
    items: Sequence[float] = (),
) -> dict[str, Any]:
    """Return our value beside the official one, and the largest difference of an item, given theirs."""
    metric = registry.load("metric", name)
    began = time.perf_counter()
    ours = metric.compute(predictions, answers)
    facts = {"n": len(answers), "official": official, "ours": ours, "difference": abs(ours - official)}
    facts["ours_s"] = round(time.perf_counter() - began, 3)
    if len(items):
        own = [metric.per_item(*pair) for pair in zip(predictions, answers, strict=True)]
        facts["largest_difference_of_an_item"] = float(np.max(np.abs(np.subtract(own, items))))
    return facts


def module(path: Path) -> ModuleType:
    """Return an official script as a module."""
    spec = importlib.util.spec_from_file_location(f"official_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def table(data: Path, name: str, split: str) -> pd.DataFrame:
    """Return a split of a data set."""
    return pd.read_parquet(data / name / f"{split}.parquet")


def classification(data: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Accuracy, F1 and Matthews beside scikit-learn, on labels of two classes (QQP) and three (MNLI)."""
    from sklearn import metrics

    rng = np.random.default_rng(0)
    for name, classes in (("glue_qqp", 2), ("glue_mnli", 3)):
        labels = table(data, name, "train")["label"].tolist()
        guesses = np.where(
            rng.random(len(labels)) < 0.7, labels, rng.integers(0, classes, len(labels))
        ).tolist()
        average = "binary" if classes == 2 else "macro"
        official = {
            "accuracy": metrics.accuracy_score(labels, guesses),
            "accuracy_norm": metrics.accuracy_score(labels, guesses),
            "f1": metrics.f1_score(labels, guesses, average=average),
            "f1_macro": metrics.f1_score(labels, guesses, average="macro"),
            "matthews": metrics.matthews_corrcoef(labels, guesses),
        }
        for metric, value in official.items():
            yield f"{metric}/{name}", compared(metric, guesses, labels, float(value))


def summaries(data: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """ROUGE beside rouge-score, which takes lines for sentences: ours, where a text has one line."""
    from rouge_score.rouge_scorer import RougeScorer

    variants = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
    scorer = RougeScorer(list(variants.values()), use_stemmer=True)
    for name, split, column in (
        ("cnn_dailymail", "validation", "highlights"),
        ("samsum", "train", "summary"),
    ):
        texts = table(data, name, split)[column].tolist()
        predictions = spoilt(texts)
        lines = [["\n".join(sentences(text)) for text in side] for side in (texts, predictions)]
        scores = [scorer.score(*pair) for pair in zip(*lines, strict=True)]
        for metric, variant in variants.items():
            items = [100 * score[variant].fmeasure for score in scores]
            answers = [(text,) for text in texts]
            yield f"{metric}/{name}", compared(metric, predictions, answers, float(np.mean(items)), items)


def split_by_punkt(data: Path) -> dict[str, Any]:
    """ROUGE-Lsum of texts on one line by our sentences, and by NLTK's Punkt as other work has it."""
    import nltk
    from rouge_score.rouge_scorer import RougeScorer

    texts = [text.replace("\n", " ") for text in table(data, "cnn_dailymail", "validation")["highlights"]]
    predictions = spoilt(texts)
    scorer = RougeScorer(["rougeLsum", "rougeL"], use_stemmer=True, split_summaries=True)
    scores = [scorer.score(*pair) for pair in zip(texts, predictions, strict=True)]
    items = [100 * score["rougeLsum"].fmeasure for score in scores]
    facts = compared("rouge_lsum", predictions, [(t,) for t in texts], float(np.mean(items)), items)
    same = sum(sentences(text) == nltk.sent_tokenize(text.strip()) for text in texts)
    rouge_l = float(np.mean([100 * score["rougeL"].fmeasure for score in scores]))
    return {**facts, "texts_split_alike": same, "rouge_l": rouge_l}


def generation(data: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """BLEU beside sacrebleu, with several references a meaning (E2E), empty predictions among them."""
    import sacrebleu

    grouped = table(data, "e2e_nlg", "train").groupby("meaning_representation", sort=False)["human_reference"]
    references = [tuple(group) for _, group in grouped]
    predictions = spoilt([group[0] for group in references])
    most = max(map(len, references))
    streams = [[group[i] if i < len(group) else None for group in references] for i in range(most)]
    official = sacrebleu.corpus_bleu(predictions, streams, force=True).score
    yield "bleu/e2e_nlg", compared("bleu", predictions, references, official)


def meteor(data: Path, with_wordnet: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """METEOR beside NLTK's, of the same words, and of NLTK's own words where Punkt is at hand."""
    import nltk
    from nltk.translate.meteor_score import meteor_score

    class NoSynonyms:
        def synsets(self, word: str) -> list[object]:
            return []

    grouped = table(data, "e2e_nlg", "train").groupby("meaning_representation", sort=False)["human_reference"]
    references = [tuple(group) for _, group in grouped]
    predictions = spoilt([group[0] for group in references])

    def official(split: Callable[[str], list[str]], **wordnet: Any) -> list[float]:
        pairs = zip(references, predictions, strict=True)
        return [meteor_score([split(one) for one in group], split(text), **wordnet) for group, text in pairs]

    kinds: list[tuple[str, str, Callable[[str], list[str]], dict[str, Any]]] = [
        ("meteor_stem/e2e_nlg", "meteor_stem", tokens, {"wordnet": NoSynonyms()})
    ]
    if with_wordnet:
        kinds.append(("meteor/e2e_nlg", "meteor", tokens, {}))
        kinds.append(("meteor/e2e_nlg, words of NLTK's word_tokenize", "meteor", nltk.word_tokenize, {}))
    for title, name, split, wordnet in kinds:
        items = official(split, **wordnet)
        yield title, compared(name, predictions, references, float(np.mean(items)), items)


def code(data: Path, checkout: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """CodeXGLUE's two BLEU scores and its exact match."""
    name = "code_x_glue_ct_code_to_text_python"
    texts = [" ".join(words) for words in table(data, name, "train")["docstring_tokens"]]
    texts += [" ".join(text.split()) for text in table(data, "e2e_nlg", "train")["human_reference"]]
    predictions = spoilt(texts)
    evaluator = module(checkout / "Code-Text/code-to-text/evaluator/evaluator.py")
    with tempfile.TemporaryDirectory() as folder:
        gold = Path(folder) / "gold.txt"
        gold.write_text("".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
        maps = evaluator.computeMaps([f"{i}\t{text}\n" for i, text in enumerate(predictions)], str(gold))
    items = [100 * evaluator.bleu(maps[0][str(i)], maps[1][str(i)][0])[0] for i in range(len(texts))]
    answers: list[tuple[str, ...]] = [(text,) for text in texts]
    official = evaluator.bleuFromMaps(*maps)[0]
    yield (
        f"codexglue_bleu/{name} and e2e_nlg",
        compared("codexglue_bleu", predictions, answers, official, items),
    )

    texts = table(data, "code_x_glue_tc_text_to_code", "train")["code"].tolist()
    predictions, answers = spoilt(texts), [(text,) for text in texts]
    bleu = module(checkout / "Text-Code/text-to-code/evaluator/bleu.py")
    split = [[[text.split()] for text in texts], [text.split() for text in predictions]]
    official = 100 * bleu.compute_bleu(*split, 4, True)[0]  # as the script calls it, before it rounds
    yield "concode_bleu/text_to_code", compared("concode_bleu", predictions, answers, official)
    items = [float(a.strip().split() == b.split()) for a, b in zip(predictions, texts, strict=True)]
    yield (
        "exact_match/text_to_code",
        compared("exact_match", predictions, answers, float(np.mean(items)), items),
    )


def questions(data: Path, script: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """All 13 values of SQuAD's script; no-answer probabilities that tie, and that do not."""
    rows = pd.concat([table(data, "squad_v2", split) for split in ("train", "validation")], ignore_index=True)
    answers = [tuple(answer["text"].tolist()) for answer in rows["answers"]]
    official = module(script)
    rng = np.random.default_rng(0)
    texts = spoilt([accepted[0] if accepted else "" for accepted in answers])
    texts = [text.replace("the ", "The ") + "." * (i % 2) if text else text for i, text in enumerate(texts)]
    for title, digits in (("", 17), (", tied probabilities", 1)):
        unsure = np.array([not accepted for accepted in answers])
        chances = np.round(0.8 * rng.random(len(rows)) + 0.2 * unsure, digits).tolist()
        predictions = [Answered(text, chance) for text, chance in zip(texts, chances, strict=True)]
        expected, f1, exact = squad_values(official, answers, predictions)
        own = registry.load("metric", "squad_v2").parts(predictions, answers)
        if own.keys() != expected.keys():
            raise SystemExit(f"the script has {sorted(expected)}, we have {sorted(own)}")
        facts = compared("squad_v2", predictions, answers, expected["f1"], f1)
        differences = {key: abs(own[key] - expected[key]) for key in expected}
        yield f"squad_v2{title}", {**facts, "official_values": expected, "differences": differences}
        yield (
            f"squad_v2_exact{title}",
            compared("squad_v2_exact", predictions, answers, expected["exact"], exact),
        )


def squad_values(
    official: ModuleType, answers: Sequence[Sequence[str]], predictions: Sequence[Answered]
) -> tuple[dict[str, float], list[float], list[float]]:
    """Return the script's values in the order of its main(), and the F1 and exact match of the items."""
    asked = [{"id": i, "answers": {"text": list(accepted)}} for i, accepted in enumerate(answers)]
    data = [{"paragraphs": [{"qas": asked}]}]
    texts = {i: prediction.text for i, prediction in enumerate(predictions)}
    chances = {i: prediction.no_answer_probability for i, prediction in enumerate(predictions)}
    answerable = official.make_qid_to_has_ans(data)
    exact, f1 = official.get_raw_scores(data, texts)
    at_threshold = [official.apply_no_ans_threshold(of, chances, answerable, 1.0) for of in (exact, f1)]
    values = official.make_eval_dict(*at_threshold)
    for prefix, wanted in (("HasAns", True), ("NoAns", False)):
        which = [i for i, has in answerable.items() if has is wanted]
        official.merge_eval(values, official.make_eval_dict(*at_threshold, qid_list=which), prefix)
    official.find_all_best_thresh(values, texts, exact, f1, chances, answerable)
    items = ([100.0 * of[i] for i in range(len(answers))] for of in (f1, exact))
    return dict(values), *items


def tables(data: Path, checkout: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """WikiSQL's logical form and execution, over made tables; the official side reads the same query."""
    sys.path.insert(0, str(checkout))
    from lib.dbengine import DBEngine  # type: ignore[import-not-found]
    from lib.query import Query  # type: ignore[import-not-found]

    rows = [with_rows(row, i) for i, row in enumerate(table(data, "wikisql", "train").to_dict("records"))]
    references = [json.dumps(row, default=lambda array: array.tolist()) for row in rows]
    texts = [changed_query(row, i) for i, row in enumerate(rows)]
    forms, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tables.db"
        store(path, rows)
        engine = DBEngine(str(path))
        for i, (text, row, reference) in enumerate(zip(texts, rows, references, strict=True)):
            gold = Query(row["sql"]["sel"], row["sql"]["agg"], read_gold(reference).query.conditions)
            read = parse(text, row["table"]["header"])
            guess = Query(read.column, read.aggregation, read.conditions) if read else None
            forms.append(float(guess == gold))
            results.append(float(execute(engine, guess, i) == execute(engine, gold, i)))
    answers = [(reference,) for reference in references]
    for name, items in (("wikisql_logical_form", forms), ("wikisql_execution", results)):
        yield name, compared(name, texts, answers, float(np.mean(items)), items)


def execute(engine: Any, query: Any, number: int) -> Any:
    """Return the official result, or as its evaluate.py the error."""
    try:
        return engine.execute_query(str(number), query, lower=True)
    except Exception as error:
        return repr(error)


def with_rows(row: dict[str, Any], number: int) -> dict[str, Any]:
    """Return a row of WikiSQL whose table has types and rows; every second has the conditions' values."""
    rng = random.Random(number)
    sql, width = row["sql"], len(row["table"]["header"])
    wanted = dict(zip(sql["conds"]["column_index"], sql["conds"]["condition"], strict=True))
    types = [
        "real" if is_number(wanted.get(i, str(i % 2) + "x" * (i % 3 > 0))) else "text" for i in range(width)
    ]
    cells = []
    for r in range(8):
        made = [str(rng.randint(0, 40)) if kind == "real" else f"Cell {rng.randint(0, 5)}" for kind in types]
        cells.append([wanted.get(i, cell) if r % 2 else cell for i, cell in enumerate(made)])
    return {"sql": sql, "table": {**row["table"], "types": types, "rows": cells}}


def is_number(text: str) -> bool:
    """Whether a value can stand in a column of numbers."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def changed_query(row: dict[str, Any], number: int) -> str:
    """Return the text of the reference, or of another query, or of none, by its number."""
    sql, header = row["sql"], row["table"]["header"]
    columns, operators, values = (
        list(sql["conds"][k]) for k in ("column_index", "operator_index", "condition")
    )
    conditions = list(zip(columns, operators, values, strict=True))
    selected, aggregation = header[sql["sel"]], sql["agg"]
    kind = number % 9
    if kind == 1:
        conditions.reverse()
    elif kind == 2:
        conditions = [(c, o, str(v).upper()) for c, o, v in conditions]
    elif kind == 3:
        conditions = conditions[:-1]
    elif kind == 4:
        aggregation = (aggregation + 1) % len(AGGREGATIONS)
    elif kind == 5:
        conditions = [(c, (o + 1) % len(OPERATORS), v) for c, o, v in conditions]
    elif kind == 6:
        conditions = [(c, o, f"about {v}") for c, o, v in conditions]
    elif kind == 7:
        selected = header[(sql["sel"] + 1) % len(header)]
    elif kind == 8:
        return "SELECT nothing WHERE"
    where = " AND ".join(f"{header[c]} {OPERATORS[o]} {v}" for c, o, v in conditions)
    what = f"{AGGREGATIONS[aggregation]}({selected})" if aggregation else selected
    return f"SELECT {what} FROM table" + (f" WHERE {where}" if where else "")


def store(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the tables as the official lib/table.py creates them: in lower case, columns named by number."""
    with sqlite3.connect(path) as database:
        for number, row in enumerate(rows):
            kinds = row["table"]["types"]
            columns = ", ".join(f"col{i} {kind}" for i, kind in enumerate(kinds))
            database.execute(f"CREATE TABLE table_{number} ({columns})")
            cells = [[str(cell).lower() for cell in line] for line in row["table"]["rows"]]
            database.executemany(f"INSERT INTO table_{number} VALUES ({', '.join('?' * len(kinds))})", cells)


def sources(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was compared with: repositories with the commits given, and packages."""
    repositories = dict(pair.split("=", 1) for pair in arguments.commit)
    packages = {}
    for package in PACKAGES:
        try:
            packages[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            packages[package] = None
    return {"repositories": repositories, "packages": packages}


def main() -> None:
    """Compare, print and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option in ("--data", "--squad", "--codexglue", "--wikisql"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--nltk-data", type=Path)
    parser.add_argument("--commit", action="append", default=[], metavar="REPOSITORY=COMMIT")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "metric_equality.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if arguments.nltk_data:
        import nltk

        nltk.data.path.insert(0, str(arguments.nltk_data))
    results: dict[str, Any] = {}
    for part in (
        classification(arguments.data),
        summaries(arguments.data),
        generation(arguments.data),
        meteor(arguments.data, arguments.nltk_data is not None),
        code(arguments.data, arguments.codexglue),
        questions(arguments.data, arguments.squad),
        tables(arguments.data, arguments.wikisql),
    ):
        for name, facts in part:
            results[name] = facts
            print(
                name, {key: value for key, value in facts.items() if not isinstance(value, dict)}, flush=True
            )
    if arguments.nltk_data:
        results["rouge_lsum/cnn_dailymail, sentences of Punkt"] = split_by_punkt(arguments.data)
    files.write_json(
        arguments.output,
        {"sources": sources(arguments), "result": results, "environment": files.environment()},
    )


if __name__ == "__main__":
    main()
