"""Texts as a stream of tasks: requests to a bank, two intents at a time. Usage: text_stream.py [ENCODER]"""

import sys

from tangentcl import NCM, TrainingPlan, backbone, class_incremental, from_arrays, run_stream

REQUESTS = {
    "lost card": ["my card is gone", "i lost my card", "i cannot find my card", "someone took my bank card"],
    "balance": ["what is my balance", "how much money do i have", "show my account balance", "how much is left"],
    "opening hours": ["when do you open", "are you open on sunday", "what are your opening hours", "open until when"],
    "transfer": ["send money to anna", "transfer fifty to my landlord", "i want to wire money", "pay my sister back"],
}
texts = [text for requests in REQUESTS.values() for text in requests]
intents = [intent for intent, requests in REQUESTS.items() for _ in requests]

source = from_arrays(texts, intents, test_share=0.25)
stream = class_incremental(source, n_tasks=2)
# A name on the Hugging Face hub or a local folder with an encoder and its tokenizer.
encoder = backbone(sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2")
learner = NCM(encoder)
print(run_stream(learner, stream, TrainingPlan()).matrix)

scores = learner(encoder.eval_transform.collate(["my wallet and my cards are missing"]))  # [1, 4]
print("my wallet and my cards are missing ->", stream.class_names[scores.argmax()])
