"""Any vision model of `transformers`: DINOv2, DINOv3, CLIP, SigLIP, ViT and others."""

from __future__ import annotations

from autolora_eval.scoring.extractor import DEFAULT, Extractor, ExtractorKind, Loading


def _load(loading: Loading) -> Extractor:
    from autolora_eval.scoring.transformers_model import TransformersExtractor

    assert loading.source is not None
    return TransformersExtractor.load(
        loading.source, loading.device, loading.dtype, loading.batch_size
    )


EXTRACTOR = ExtractorKind(
    name=DEFAULT,
    summary="The pooled output of a vision model (DINOv2: the CLS token; CLIP: its embedding).",
    source="Wolf et al. 2020, arXiv 1910.03771",
    needs_model=True,
    load=_load,
)
