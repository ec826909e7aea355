"""A study's tables described in Croissant, the format in which data sets of machine learning are published.

Source: Croissant 1.0, http://mlcommons.org/croissant/1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyarrow import types

from rankdrift import __version__, files
from rankdrift.analysis.report.study import read_meta, table_files
from rankdrift.analysis.report.table_files import Column, columns, copy_tables
from rankdrift.layout import StudyLayout

CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
CITATION = "@software{{rankdrift, title = {{rankdrift}}, version = {{{version}}}}}"
KINDS = (
    (types.is_boolean, "sc:Boolean"),
    (types.is_integer, "sc:Integer"),
    (types.is_floating, "sc:Float"),
)


def write_croissant(study: StudyLayout, folder: Path, license_name: str | None = None) -> Path:
    """Write ``croissant.json`` beside copies of the tables, ``tables/*.parquet``; return its path.

    Parameters
    ----------
    study
        The study; it has tables.
    folder
        Where to write.
    license_name
        Licence of the tables, as an SPDX name or a URL; the writer of the tables alone can say it.

    """
    name = study.root.resolve().name
    described: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": "What full fine-tuning and LoRA did to a language model: tables of the study "
        f"{name}, a row a checkpoint, matrix, layer or score.",
        "version": "1.0.0",
        "datePublished": files.timestamp()[:10],
        "citeAs": CITATION.format(version=__version__),
    }
    if license_name:
        described["license"] = license_name
    described["recordSet"] = [_records(table) for table in table_files(study)]
    described["distribution"] = [_file(copy) for copy in copy_tables(study, folder / "tables")]
    files.write_json(folder / "croissant.json", described)
    return folder / "croissant.json"


def _file(table: Path) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": f"{table.stem}.parquet",
        "name": table.stem,
        "contentUrl": f"tables/{table.name}",
        "contentSize": f"{table.stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": files.digest_file(table),
    }


def _records(table: Path) -> dict[str, Any]:
    meta = read_meta(table)
    return {
        "@type": "cr:RecordSet",
        "@id": table.stem,
        "name": table.stem,
        "description": f"{meta['rows']} rows, by the analysis {meta['analysis']}",
        "field": [_field(column) for column in columns(table)],
    }


def _field(column: Column) -> dict[str, Any]:
    return {
        "@type": "cr:Field",
        "@id": f"{column.table}/{column.name}",
        "name": column.name,
        "description": column.meaning or column.name,
        "dataType": next((name for holds, name in KINDS if holds(column.kind)), "sc:Text"),
        "source": {"fileObject": {"@id": f"{column.table}.parquet"}, "extract": {"column": column.name}},
    }
