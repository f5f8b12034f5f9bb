"""Writes tensorflow.npz: TensorFlow's losses and gradients for fixed sampled ids.

Run once, in an environment of its own: pip install tensorflow-cpu==2.21.0; python THIS_FILE
"""

from pathlib import Path

import numpy as np
import tensorflow as tf

VOCAB, FEATURES, TOKENS, SAMPLED = 40, 6, 5, 12


def main():
    rng = np.random.default_rng(0)
    arrays = {
        "weight": rng.normal(size=(VOCAB, FEATURES)).astype(np.float32),
        "bias": rng.normal(size=VOCAB).astype(np.float32),
        "hidden": rng.normal(size=(TOKENS, FEATURES)).astype(np.float32),
        "ids": rng.choice(VOCAB, SAMPLED, replace=False).astype(np.int64),
        "log_expected_count": np.log(rng.uniform(0.1, 1, SAMPLED)).astype(np.float32),
    }
    for num_true in (1, 3):
        labels = np.stack([rng.choice(VOCAB, num_true, replace=False) for _ in range(TOKENS)])
        labels[0, 0] = arrays["ids"][2]  # an accidental hit
        true_log = np.log(rng.uniform(0.1, 1, (TOKENS, num_true))).astype(np.float32)
        arrays[f"labels_{num_true}"] = labels
        arrays[f"labels_log_expected_count_{num_true}"] = true_log
        sampled = (
            arrays["ids"],
            np.exp(true_log),
            np.exp(arrays["log_expected_count"]),
        )
        for name, loss in (("softmax", tf.nn.sampled_softmax_loss), ("nce", tf.nn.nce_loss)):
            for remove in (False, True):
                weight, bias = tf.Variable(arrays["weight"]), tf.Variable(arrays["bias"])
                hidden = tf.Variable(arrays["hidden"])
                with tf.GradientTape() as tape:
                    value = loss(
                        weight, bias, labels, hidden, SAMPLED, VOCAB, num_true,
                        sampled_values=sampled, remove_accidental_hits=remove,
                    )  # fmt: skip
                    total = tf.reduce_sum(value)
                gradients = tape.gradient(total, [weight, bias, hidden])
                key = f"{name}_{num_true}_{remove}"
                arrays[f"{key}_loss"] = value.numpy()
                for variable, gradient in zip(("weight", "bias", "hidden"), gradients, strict=True):
                    arrays[f"{key}_{variable}"] = tf.convert_to_tensor(gradient).numpy()
    np.savez_compressed(Path(__file__).with_name("tensorflow.npz"), **arrays)


if __name__ == "__main__":
    main()
