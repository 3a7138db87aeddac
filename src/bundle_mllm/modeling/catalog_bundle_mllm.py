"""The item catalog: one feature matrix per modality and the mask of what is present, the rows behind item ids.

Knows nothing about models, token ids, titles or files.
"""

from typing import Any

import torch
from torch import nn


class BundleMLLMTable(nn.Module):
    """One persistent buffer per modality, for example the feature matrices of the catalog."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], fill: float = 0.0):
        super().__init__()
        self.fill = fill
        for name, shape in shapes.items():
            self.register_buffer(name, torch.full(shape, fill))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.get_buffer(name)


class BundleMLLMItemCatalog(nn.Module):
    """Features and presence mask of every item.

    While a model trains, the catalog may hold out-of-fold features as well (see `set_folds`): row `(f + 1) * num_items
    + r` is then item `r` with features that were fitted without the training bundles of fold `f`.
    """

    present: torch.Tensor
    fold_features: torch.Tensor
    fold_present: torch.Tensor

    def __init__(self, modalities: dict[str, int], num_items: int):
        super().__init__()
        self.modalities = dict(modalities)
        self.features = BundleMLLMTable({name: (num_items, width) for name, width in modalities.items()})
        self.register_buffer("present", torch.zeros(num_items, len(modalities), dtype=torch.bool))
        self.clear_folds()

    @property
    def num_items(self) -> int:
        """Number of items."""
        return self.present.shape[0]

    @property
    def num_rows(self) -> int:
        """Number of rows: the items, and as many for each fold."""
        return self.num_items * (1 + self.num_folds)

    def set_folds(self, modality: str, features: torch.Tensor, present: torch.Tensor) -> None:
        """Add rows with a modality that was fitted without each fold; they are not saved, nor part of `num_items`.

        `features` are `[num_folds, num_items, width]`, and `present` is `[num_folds, num_items]` bool.
        """
        table = self.features[modality]
        self.num_folds, self.fold_modality = len(features), modality
        self.register_buffer("fold_features", features.flatten(0, 1).to(table), persistent=False)
        self.register_buffer("fold_present", present.flatten().to(table.device), persistent=False)

    def clear_folds(self) -> None:
        """Drop the rows with out-of-fold features."""
        self.num_folds, self.fold_modality = 0, None
        self.register_buffer("fold_features", None, persistent=False)
        self.register_buffer("fold_present", None, persistent=False)

    def gather(
        self, rows: torch.Tensor, extra_items: dict[str, Any] | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Read the given rows `[n]`, and no other; row `num_rows + j` is row `j` of `extra_items`.

        Those are items of this call only, `{"features": {modality: [n, width]}, "present": [n, num_modalities] bool}`;
        `present` may be left out.

        Returns:
            The features of each modality `[n, width]`, and the presence mask `[n, num_modalities]`.
        """
        rows = rows.to(self.present.device)
        if extra_items is None:
            return self._gather(rows)
        extra, extra_present = self._check_extra_items(extra_items)
        if self.num_items == 0:
            return {name: extra[name][rows] for name in self.modalities}, extra_present[rows]
        is_extra = (rows >= self.num_rows).unsqueeze(-1)  # [n, 1]
        extra_rows = (rows - self.num_rows).clamp(min=0)
        features, present = self._gather(rows.clamp(max=self.num_rows - 1))
        features = {
            name: torch.where(is_extra, extra[name][extra_rows].to(matrix.dtype), matrix)
            for name, matrix in features.items()
        }
        return features, torch.where(is_extra, extra_present[extra_rows], present)

    def _gather(self, rows: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        items = rows if self.num_folds == 0 else rows % self.num_items
        features, present = {name: self.features[name][items] for name in self.modalities}, self.present[items]
        if self.fold_modality is not None:
            is_fold = rows >= self.num_items
            fold_rows = rows[is_fold] - self.num_items
            features[self.fold_modality][is_fold] = self.fold_features[fold_rows]
            present[is_fold, list(self.modalities).index(self.fold_modality)] = self.fold_present[fold_rows]
        return features, present

    def _check_extra_items(self, extra_items: dict[str, Any]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        device, given, present = self.present.device, extra_items["features"], extra_items.get("present")
        num_rows = num_extra_items(extra_items)
        _check_features(given, self.modalities, num_rows, "extra_items")
        if present is None:
            present = torch.tensor([[name in given for name in self.modalities]] * num_rows)
        if present.shape != (num_rows, len(self.modalities)):
            raise ValueError(
                f"extra_items['present'] has shape {list(present.shape)}, so it cannot mask {num_rows} items: give "
                f"one row per item and one column for each of {list(self.modalities)}, in this order."
            )
        features = {
            name: given[name].to(device) if name in given else torch.zeros(num_rows, width, device=device)
            for name, width in self.modalities.items()
        }
        return features, present.to(device=device, dtype=torch.bool)

    def replace(
        self, features: dict[str, torch.Tensor], present: dict[str, torch.Tensor] | None, dtype: torch.dtype
    ) -> None:
        """Replace all rows, those of folds included. New items are new rows; nothing is resized or retrained.

        Args:
            features: `[num_items, width]` of each modality, any float type (kept, unless wider than `dtype`). A
                modality that is left out is absent for every item.
            present: `[num_items]` of each modality, true where an item has it. All true where left out.
            dtype: The widest float type to keep.

        Raises:
            ValueError: If a modality is unknown, a shape is wrong, or a value is not finite in a present row.
        """
        if not features:
            raise ValueError("set_catalog got no features, so the catalog would be empty: give a matrix per modality.")
        num_items = len(next(iter(features.values())))
        _check_features(features, self.modalities, num_items, "set_catalog")
        device, present = self.present.device, present or {}
        matrices: dict[str, torch.Tensor] = {}
        columns: list[torch.Tensor] = []
        if unknown := sorted(set(present) - set(features)):
            raise ValueError(f"set_catalog got a presence mask for {unknown}, but no features: give both or neither.")
        for name, width in self.modalities.items():
            matrix = features.get(name)
            column = torch.full((num_items,), matrix is not None)
            if matrix is None:
                matrix = torch.zeros(num_items, width, dtype=dtype)
            elif name in present:
                column = present[name].to(device="cpu", dtype=torch.bool)
                if column.shape != (num_items,):
                    raise ValueError(
                        f"The presence mask of {name!r} has shape {list(column.shape)}, so it cannot mask {num_items} "
                        "items: give one value per item."
                    )
            if matrix.dtype.itemsize > dtype.itemsize or not matrix.is_floating_point():
                matrix = matrix.to(dtype)
            matrix = matrix.detach().to(device).masked_fill(~column.to(device).unsqueeze(-1), 0.0)
            if bad := (~matrix.isfinite().all(dim=-1)).nonzero().flatten().tolist():
                raise ValueError(
                    f"The {name!r} features of {len(bad)} present items are not finite (first rows {bad[:3]}), so "
                    "every question that shows them would score NaN: repair them or mark these items as not present."
                )
            matrices[name] = matrix
            columns.append(column)
        for name, matrix in matrices.items():  # not before all are known to fit
            setattr(self.features, name, matrix)
        self.present = torch.stack(columns, dim=1).to(device)
        self.clear_folds()  # of the items that were there

    def rows(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return features and presence mask of each modality, as `replace` takes them."""
        columns = dict(zip(self.modalities, self.present.unbind(dim=1), strict=True)) if self.modalities else {}
        return {name: self.features[name] for name in self.modalities}, columns


class BundleMLLMFeatureStatistics(nn.Module):
    """Mean and standard deviation of each feature over the catalog."""

    def __init__(self, modalities: dict[str, int]):
        super().__init__()
        shapes = {name: (width,) for name, width in modalities.items()}
        self.mean, self.std = BundleMLLMTable(shapes), BundleMLLMTable(shapes, fill=1.0)

    def forward(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """Standardize the features `[n, width]` of a modality, in float32."""
        return (features.float() - self.mean[name].float()) / self.std[name].float()

    @torch.no_grad()
    def fit(self, catalog: BundleMLLMItemCatalog) -> None:
        """Compute both over the items that have the modality; a constant feature keeps deviation 1."""
        for column, name in enumerate(catalog.modalities):
            rows = catalog.features[name][catalog.present[:, column]].float()
            if len(rows):
                mean, std = mean_and_deviation(rows)
                self.mean[name].copy_(mean)
                self.std[name].copy_(std)


def mean_and_deviation(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean and the standard deviation `[num_columns]` of a table; a constant column has deviation 1."""
    std = table.std(dim=0, correction=0)
    return table.mean(dim=0), torch.where(std > 1e-6, std, 1.0)


def num_extra_items(extra_items: dict[str, Any]) -> int:
    """Return the number of items in `extra_items`, from its mask or its first feature matrix."""
    present = extra_items.get("present")
    return len(present if present is not None else next(iter(extra_items["features"].values())))


def mask_absent(features: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return features `[n, width]` with zeros where `present` `[n]` is false: absent rows may hold anything."""
    return torch.where(present.unsqueeze(-1), features, 0.0)


def _check_features(features: dict[str, torch.Tensor], modalities: dict[str, int], num_rows: int, source: str) -> None:
    for name, matrix in features.items():
        if name not in modalities:
            raise ValueError(
                f"{source} has features of {name!r}, which this model cannot read: it has {sorted(modalities)}; drop "
                "them, or create the model with that modality."
            )
        if matrix.shape != (num_rows, modalities[name]):
            raise ValueError(
                f"The {name!r} features of {source} have shape {list(matrix.shape)}, expected {num_rows} items x "
                f"{modalities[name]} columns: give one row per item, from the encoder this model was trained with."
            )
