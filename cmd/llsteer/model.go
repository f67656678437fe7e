package main

import (
	"context"
	"math"
	"os"
	"path/filepath"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// demoName stands for the embedded model, and as a job for the embedded job.
const demoName = "demo"

// maxThreads is ggml's own limit.
const maxThreads = 512

// modelFlags are those of every command that opens a model.
type modelFlags struct {
	path                        string
	threads, gpuLayers, ctxSize int
	seed                        uint64
	chat                        bool
	system                      string
	parseSpecial                bool
}

// add defines them.
func (f *modelFlags) add(cmd *cobra.Command) {
	addFlags(cmd, "Model", func(flags *pflag.FlagSet) {
		flags.StringVarP(&f.path, "model", "m", "", "GGUF file, of a split one the first part; `PATH` demo is the embedded model (required)")
		completeFiles(flags, "model", "gguf")
		f.addCompute(flags)
		countVar(flags, &f.gpuLayers, "gpu-layers", "", 0, -1, math.MaxInt32, "blocks to compute on the GPU, -1 for all; -ngl `N` is the same")
		countVar(flags, &f.ctxSize, "ctx-size", "", 0, 0, math.MaxInt32, "most tokens of a text, at most the model's training context; 0: that (default 0)")
	})
	addFlags(cmd, "Prompt", func(flags *pflag.FlagSet) {
		flags.BoolVar(&f.chat, "chat", false, "the prompt is a user's turn in the model's chat template")
		flags.StringVar(&f.system, "system", "", "system `TEXT`, with --chat")
		flags.BoolVar(&f.parseSpecial, "parse-special", false, "control tokens in texts, such as <eos>, are those tokens; otherwise plain text")
	})
}

// addCompute defines those of quickstart, too.
func (f *modelFlags) addCompute(flags *pflag.FlagSet) {
	countVar(flags, &f.threads, "threads", "t", 0, 0, maxThreads, "threads; 0: one for each core (default 0)")
	flags.Uint64Var(&f.seed, "seed", 0, "`N` that random draws begin with (default 0)")
}

// open opens the model; decoding as in ggmlsteer.Options.
func (p *program) open(ctx context.Context, f *modelFlags) (*ggmlsteer.Model, error) {
	switch {
	case f.path == "":
		return nil, badInput("-m MODEL.gguf, or -m demo for the embedded model", "no model is given")
	case f.system != "" && !f.chat:
		return nil, badInput("add --chat", "--system is for --chat")
	case f.parseSpecial && f.chat:
		return nil, badInput("leave out --parse-special", "a chat's texts are plain, and its control tokens are the template's")
	}
	var err error
	if f.system, err = p.text("--system", f.system); err != nil {
		return nil, err
	}
	path, remove, err := modelFile(f.path)
	if err != nil {
		return nil, err
	}
	defer remove() // what is open stays readable
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{Threads: f.threads, GPULayers: f.gpuLayers})
	if err != nil {
		return nil, err
	}
	if reason := m.Info().NoGPU; reason != "" {
		p.note("no GPU, so the CPU computes all: %s", reason)
	}
	if err := f.check(ctx, m); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (f *modelFlags) check(ctx context.Context, m *ggmlsteer.Model) error {
	info := m.Info()
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case f.ctxSize > info.TrainContext:
		return badInput("", "--ctx-size %d is more than the %d tokens that the model was trained on", f.ctxSize, info.TrainContext)
	case f.chat && !info.Chat:
		return badInput("leave out --chat, or use an instruction-tuned model", "%s has no chat template", f.path)
	}
	return nil
}

// modelFile is the file that -m names; the embedded model is put into one, which
// remove removes.
func modelFile(path string) (file string, remove func(), err error) {
	if path != demoName {
		return path, func() {}, nil
	}
	folder, err := os.MkdirTemp("", "llsteer-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { os.RemoveAll(folder) }
	file = filepath.Join(folder, "demo.gguf")
	if err := os.WriteFile(file, demo.Model, 0o600); err != nil {
		remove()
		return "", nil, err
	}
	return file, remove, nil
}

// context is how many tokens a text may have.
func (f *modelFlags) context(m *ggmlsteer.Model) int {
	if f.ctxSize > 0 {
		return f.ctxSize
	}
	return m.Info().TrainContext
}

// fits refuses a text that is longer than the context.
func (f *modelFlags) fits(m *ggmlsteer.Model, what string, tokens int) error {
	if limit := f.context(m); tokens > limit {
		return badInput("", "%s has %d tokens, and the context is %d", what, tokens, limit)
	}
	return nil
}

// Precisions, as --precision names them.
const (
	precisionF32  = "f32"
	precisionBF16 = "bf16"
)

// addPrecision defines --precision; without says what is used if it is not given.
func addPrecision(flags *pflag.FlagSet, p *precision, without string) {
	choiceVar(flags, (*string)(p), "precision", []string{precisionF32, precisionBF16},
		"f32: exact dequantized weights, float32 everywhere; bf16: the same with 16 bits in products with weights, faster (default "+without+")")
}

// A precision is what --precision was given, or empty.
type precision string

func (p precision) or(without ggmlsteer.Precision) ggmlsteer.Precision {
	switch p {
	case precisionF32:
		return ggmlsteer.F32
	case precisionBF16:
		return ggmlsteer.BF16
	}
	return without
}
