"""Self-supervised learning with an averaged teacher (BYOL): fp32, bfloat16 and 8 bits, judged by a linear probe.

The student sees one distorted view of a digit and predicts its teacher's features of another view, without labels. The
teacher is an average of the student. The probe is fitted on ten distorted images per class and tested on distorted
images of unseen digits, on features of the student and of the teacher. Takes about five minutes on two cores.

    pip install "halfulp[lab]" scikit-learn
    python examples/teacher_digits.py --out teacher_digits.png
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample, normalize

from halfulp.averaging import Cosine, Teacher

ARMS = {
    "fp32": {"state": "fp32"},
    "bf16, nearest": {"state": "bf16", "rounding": "nearest"},
    "8 bits, nearest": {"state": "8bit", "rounding": "nearest"},
    "8 bits, stochastic": {"state": "8bit"},
}
SIZE = 16
LABELS = 10


def digits():
    """Return images of 8 x 8 pixels and labels, for training and for testing the probe."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[:1300], labels[:1300], images[1300:], labels[1300:]


def distort(images, generator):
    """Rotate, stretch, shift and add noise, at 16 x 16 pixels."""

    def uniform(low, high):
        return low + (high - low) * torch.rand(len(images), generator=generator)

    angle, wide, high = uniform(-0.35, 0.35), uniform(0.9, 1.4), uniform(0.9, 1.4)
    turn = torch.stack([angle.cos() * wide, angle.sin() * wide, -angle.sin() * high, angle.cos() * high], 1)
    shift = torch.stack([uniform(-0.3, 0.3), uniform(-0.3, 0.3)], 1)
    where = affine_grid(
        torch.cat([turn.view(-1, 2, 2), shift[:, :, None]], 2), (len(images), 1, SIZE, SIZE), align_corners=False
    )
    out = grid_sample(images + 1, where, align_corners=False) - 1
    return out + 0.2 * torch.randn(out.shape, generator=generator)


def encoder(width=16, features=128):
    """Return a small convolutional network with batch norm."""

    def block(a, b):
        return [nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]

    return nn.Sequential(
        *block(1, width), *block(width, 2 * width), nn.Flatten(), nn.Linear(32 * width, features, bias=False),
        nn.BatchNorm1d(features), nn.ReLU(),
    )  # fmt: skip


def head(inside, hidden=256, outside=64):
    return nn.Sequential(
        nn.Linear(inside, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outside)
    )


def without_labels(arm, seed, steps, momentum, lr):
    """Return the encoders of student and teacher after training by BYOL."""
    torch.manual_seed(seed)
    student, predictor = nn.Sequential(encoder(), head(128)), head(64)
    teacher = Teacher(student, Cosine(momentum, 1.0, steps), buffers="own", seed=seed, **ARMS[arm])
    images = digits()[0]
    optimizer = torch.optim.AdamW([*student.parameters(), *predictor.parameters()], lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = images[torch.randint(len(images), (128,), generator=generator)]
        views = torch.cat([distort(pick, generator), distort(pick, generator)])
        target = normalize(teacher(views.roll(len(pick), 0)), dim=1)
        loss = 2 - 2 * (normalize(predictor(student(views)), dim=1) * target).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        teacher.update()
    teacher.eval()
    return student[0].eval(), teacher.module[0]


def with_labels(seed, steps, lr):
    """Return the same encoder after training on all labels with the same distortions, as an upper bound."""
    torch.manual_seed(seed)
    module = encoder()
    model = nn.Sequential(module, nn.Linear(128, 10))
    images, labels, _, _ = digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        pick = torch.randint(len(images), (128,), generator=generator)
        loss = cross_entropy(model(distort(images[pick], generator)), labels[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return module.eval()


def untrained(seed):
    torch.manual_seed(seed)
    module = encoder()
    with torch.no_grad():  # batch norm statistics, so that features are normalized
        for _ in range(30):
            module(distort(digits()[0][:256], torch.Generator().manual_seed(seed)))
    return module.eval()


def probe(module, seed, draws=8):
    """Return the mean accuracy of a linear classifier on frozen features, over draws of ten labels per class."""
    images, labels, unseen, truth = digits()
    generator = torch.Generator().manual_seed(1000 + seed)
    found = []
    for _ in range(draws):
        order = torch.randperm(len(images), generator=generator)
        few = torch.cat([order[labels[order] == c][:LABELS] for c in range(10)])
        with torch.no_grad():
            x, test = module(distort(images[few], generator)), module(distort(unseen, generator))
        mean, spread = x.mean(0), x.std(0) + 1e-3
        x, test = (x - mean) / spread, (test - mean) / spread
        linear = nn.Linear(x.shape[1], 10)
        nn.init.zeros_(linear.weight)
        solver = torch.optim.LBFGS(linear.parameters(), max_iter=100)

        def closure(linear=linear, solver=solver, x=x, few=few):
            solver.zero_grad()
            loss = cross_entropy(linear(x), labels[few]) + 1e-3 * linear.weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)
        found.append((linear(test).argmax(1) == truth).float().mean().item())
    return sum(found) / len(found)


def draw(table, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.2, 3.4), layout="constrained")
    for name, style in (("untrained", ":"), ("trained on all labels", "--")):
        level = sum(table[name]["student"]) / len(table[name]["student"])
        axis.axvline(level, color="#777777", linestyle=style, linewidth=1.2, label=name)
    arms = [a for a in ARMS if a in table]
    for which, color, shift in (("student", "#4c72b0", -0.12), ("teacher", "#dd8452", 0.12)):
        points = [(v, k + shift) for k, arm in enumerate(arms) for v in table[arm][which]]
        axis.plot(
            *zip(*points, strict=True), "o", color=color, markersize=7, alpha=0.8, label=f"features of the {which}"
        )
    axis.set_yticks(range(len(arms)), arms)
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_xlabel("accuracy of a linear probe with ten labels a class")
    axis.set_title("Self-supervised on digits, by how the teacher's weights are stored; a dot a seed", fontsize=10)
    axis.grid(axis="x", alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--momentum", type=float, default=0.996, help="of the teacher at the start; 1 at the end")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", help="picture of the figures")
    args = parser.parse_args()
    table = {name: {"student": [], "teacher": []} for name in ("untrained", *ARMS, "trained on all labels")}
    for seed in range(args.seeds):
        table["untrained"]["student"].append(probe(untrained(seed), seed))
        table["trained on all labels"]["student"].append(probe(with_labels(seed, args.steps, args.lr), seed))
        for arm in ARMS:
            student, teacher = without_labels(arm, seed, args.steps, args.momentum, args.lr)
            table[arm]["student"].append(probe(student, seed))
            table[arm]["teacher"].append(probe(teacher, seed))
    print(f"accuracy of a linear probe, ten labels a class, after {args.steps} steps; one column a seed")
    print(f"{'teacher':24}{'on the student':{8 * args.seeds}}    on the teacher")
    for name, row in table.items():
        print(f"{name:24}" + "    ".join("".join(f"{v:8.3f}" for v in row[which]) for which in ("student", "teacher")))
    if args.out:
        draw(table, args.out)
        print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
