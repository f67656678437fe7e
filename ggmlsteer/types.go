// Package ggmlsteer opens a GGUF model, differentiates its loss with respect
// to a steering, and generates with steerings that may change while it does.
//
// A Model may be shared by goroutines. A Session or a Decoder belongs to one
// goroutine at a time. Close each of them once it is no longer used; closing
// twice is harmless, and closing a Model before its Sessions and Decoders only
// marks it: the last of them frees it.
package ggmlsteer

import "github.com/llsteer/llsteer/loader"

// Token is an id of the model's vocabulary.
type Token = int32

// Precision says how matrix products with the model's weights are computed.
type Precision int

const (
	// Ordinary is llama.cpp's decoding: activations are rounded to what its fastest
	// kernels take (8 bits for quantized weights). On processors with AVX-512, batches of
	// 32 tokens or more are computed as with BF16.
	Ordinary Precision = iota
	// F32 uses the exact dequantized weights and float32 everywhere else.
	F32
	// BF16 is F32 with both operands of products with weights rounded to 16 bits: faster for
	// more than some 20 tokens at once, and no less precise than bfloat16.
	BF16
)

// Options of Open.
type Options struct {
	Threads   int // 0: one for each physical core
	GPULayers int // blocks to move to the GPU; -1: all. Without a GPU all stay on the CPU: see Info.NoGPU
}

// Info describes an open model.
type Info struct {
	Path         string
	Name         string // general.name, or the file's name
	Arch         string
	Quantization string // as llama.cpp names the file's type, such as "Q4_K - Medium"
	Embd         int    // width of the residual stream
	Layers       int    // number of blocks
	Vocab        int
	TrainContext int    // tokens the model was trained on
	Chat         bool   // has a chat template
	GPULayers    int    // blocks that are on a GPU
	NoGPU        string // why there is no GPU, where one was asked for
}

// A Sequence is a prompt with one completion, and how strongly each of its
// tokens is steered.
type Sequence struct {
	Tokens []Token // prompt, then completion
	Prompt int     // number of prompt tokens, at least 1; Tokens[Prompt:] are the targets
	// Vector[k][i] is the factor of the k-th vector at token i (all layers alike),
	// Matrix[j][i] that of the j-th row of the matrices.
	Vector, Matrix [][]float32
}

// An Operation is the engine's form of every steering operator, at one layer:
//
//	x ← x + Σₖ sₖ·Vectors[k] + Σⱼ sⱼ·Left[j] (Right[j]·x)
//
// with s the factors of a Sequence. Gradients have the same form.
type Operation struct {
	Vectors     [][]float32 // each of the model's width
	Left, Right [][]float32 // rank rows each, of the model's width
}

// A Prob is the probability of one target token, at the session's coldness:
// natural logarithms of p and of 1 − p, both accurate when p is near 0 or 1.
type Prob struct {
	Log, LogComplement float64
}

// SessionOptions fix what a Session can be asked.
type SessionOptions struct {
	Layers   []int   // steered layers, ascending; may be empty: then there is no gradient
	Vectors  int     // vectors per layer: 1, or more where sequences differ in theirs
	Rank     int     // rows of the matrices per layer; 0: none
	Coldness float64 // κ: p = softmax(κ·logits)
	// Observed is a layer at whose input the residual stream of the targets is
	// observed, too, steered by the layers below it; nil: none.
	Observed *int
	// Precision is F32 or BF16; Ordinary stands for F32.
	Precision Precision
	// Memory is about how many bytes the activations may take; 0 stands for 1.5e9. What takes
	// more is computed in parts, and where these share long prompts or are long themselves,
	// once more for the gradient. A single long sequence may need more all the same.
	Memory float64
}

// Active is a steering in use: which, how strongly, and at which tokens of a text. A
// steering that is for prompts only stays that in every phase.
type Active struct {
	Steering *loader.Steering
	Strength float64
	Phase    Phase
	From     int // the first position that is steered, counted from 0 at the text's beginning, BOS included
}

// A Phase is a part of a text. The first token that is generated is chosen after the
// prompt's last one, and so under the prompt's steering.
type Phase int

const (
	EveryToken Phase = iota
	PromptTokens
	GeneratedTokens
)

// DecoderOptions of Model.NewDecoder.
type DecoderOptions struct {
	Context   int // tokens of each sequence; at most the model's training context
	Sequences int // slots: texts that are computed side by side
	Precision Precision
	cells     int // of the cache, where sequences share tokens; 0: as many as Sequences of Context tokens take
}

// SearchOptions say what Model.Search looks for.
type SearchOptions struct {
	Beams    int     // at least 1
	Further  int     // tokens of each completion after its first
	Coldness float64 // κ: p = softmax(κ·logits)
	Total    bool    // score by the product of all tokens' probabilities, not by the last one's
	Reverse  bool    // the least likely
	// Contrast is a second prompt, whose probabilities are subtracted; nil: none.
	Contrast []Token
}

// A Completion is one that Model.Search found.
type Completion struct {
	Tokens []Token   // one that ended its generation has the end token as its last
	Probs  []float64 // of each token, or the difference of two prompts
}

// GenerateOptions say how Decoder.Generate continues.
type GenerateOptions struct {
	Tokens int // at most so many
	Sampling
	Stop []string // texts that end a continuation; they are left out of it
	// Keep what the slots have of the prompts, as Slot.Set does. Otherwise all slots are
	// emptied before, and the same call gives the same bits whatever came before it.
	Keep bool
}

// Sampling says how tokens are drawn. Temperature 0 is greedy, and nothing else is used.
type Sampling struct {
	Temperature   float64
	TopK          int     // 0: all
	TopP, MinP    float64 // 1 and 0: all
	RepeatPenalty float64 // 1: none
	Seed          uint32
}

// StopReason says why a continuation ended.
type StopReason string

const (
	StopEOS    StopReason = "eos"
	StopLength StopReason = "length"
	StopText   StopReason = "stop"
)

// A Continuation is what was generated after a prompt.
type Continuation struct {
	Text   string
	Tokens []Token // without prompt and end token
	Stop   StopReason
}
