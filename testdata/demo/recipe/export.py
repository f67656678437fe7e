"""Step 5: the trained model and its vocabulary as one GGUF file."""

import sentencepiece

import gguf_file
import train


def export(checkpoint_path, tokenizer_path, model_path):
    model = train.load_model(checkpoint_path)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    gguf_file.write(model_path, model, tokenizer)
    print(f"{model_path}: {model_path.stat().st_size} bytes")
