"""The Trainer of transformers without forgetting: BERT with LoRA learns words of two classes, then of two others."""

import copy
import tempfile

import peft
import torch
import transformers

import tangentcl

torch.manual_seed(0)
sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
config = transformers.BertConfig(**sizes, vocab_size=60, num_labels=4, initializer_range=0.2)  # or your own encoder
lora = peft.LoraConfig("SEQ_CLS", r=4, target_modules=["query", "value"], modules_to_save=["classifier"])
model = peft.get_peft_model(transformers.BertForSequenceClassification(config), lora)


def task(classes):
    labels = torch.tensor(classes).repeat(40)
    own, any_words = 20 + 10 * labels[:, None] + torch.randint(10, (80, 8)), torch.randint(1, 20, (80, 8))
    return {"input_ids": torch.where(torch.rand(80, 8) < 0.5, own, any_words), "labels": labels}


def train(model, task, guard=None):
    rows = [dict(zip(task, row)) for row in zip(*task.values())]
    args = transformers.TrainingArguments(tempfile.mkdtemp(), num_train_epochs=25, learning_rate=3e-3, report_to=[],
                                          save_strategy="no", logging_strategy="no", disable_tqdm=True)  # fmt: skip
    trainer = transformers.Trainer(model, args, train_dataset=rows)
    if guard is not None:
        trainer.add_callback(tangentcl.hf.ForgettingGuard(guard))
    trainer.train()
    return model.eval()


def accuracy(model, task):
    return float((model(task["input_ids"]).logits.argmax(dim=1) == task["labels"]).float().mean())


old, new = task([0, 1]), task([2, 3])
train(model, old)
ids = {"input_ids": old["input_ids"]}
guard = tangentcl.SpectralRegularizer.of_old(model, ids, outputs=lambda model, x: model(**x).logits, strength=2.0)
bare = train(copy.deepcopy(model), new)
print(f"without the guard: accuracy {accuracy(bare, old):.2f} on the old classes, {accuracy(bare, new):.2f} on the new")
train(model, new, guard)
print(f"with the guard: accuracy {accuracy(model, old):.2f} on the old classes, {accuracy(model, new):.2f} on the new")
