package optimize

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// A fixture is what PyTorch computes for a tiny model: see testdata/reference/README.md.
type fixture struct {
	Width, Layers, Vocabulary int
	Coldness, Eps             float64
	Sequences                 []fixtureSequence
	Cases                     []struct {
		Name       string
		Operations []fixtureOperation
		OneMinus   bool `json:"one_minus"`
		Normalize  bool `json:"normalize_token_length"`
		Satisfice  *float64
		Token      []string
		Negative   []bool
		Losses     []float64
		Total      float64
		Gradient   []fixtureOperation
	}
	Adam []struct {
		Name           string
		Layers         []int
		Start          [][]float32
		Regularization *string `json:"regularization_type"`
		LearningRate   float64 `json:"learning_rate"`
		Losses         [][]float64
		Totals         []float64
		Vectors        [][]float64
	}
}

type fixtureSequence struct {
	Example int
	Kind    string
	Prompt  int
	Tokens  []ggmlsteer.Token
}

type fixtureOperation struct {
	Layer   int
	Vectors [][]float32
	Left    [][]float32
}

// What PyTorch's rounding may differ by, and ours: make.py holds its float32 against float64
// to a tenth of these.
const (
	caseLossTolerance     = 1e-4 // of one completion
	caseGradientTolerance = 3e-5 // of the norm
	runLossTolerance      = 5e-4 // of the total after up to ten steps
	runVectorTolerance    = 1e-4 // of the norm
)

var fixtureNames = []string{"gemma", "gemma2", "gemma3", "llama", "mistral", "phi3", "qwen2", "qwen3"}

// eachFixture runs a test on every model of testdata/reference, each with a tokenizer
// to which token 7 is the letter of number 7: jobs are texts.
func eachFixture(t *testing.T, test func(t *testing.T, m *ggmlsteer.Model, f *fixture)) {
	for _, name := range fixtureNames {
		t.Run(name, func(t *testing.T) {
			folder := filepath.Join("..", "testdata", "reference")
			data, err := os.ReadFile(filepath.Join(folder, name+".json"))
			require.NoError(t, err)
			f := new(fixture)
			require.NoError(t, json.Unmarshal(data, f))
			m, err := ggmlsteer.Open(withTokenizer(t, filepath.Join(folder, name+".gguf"), f.Vocabulary), ggmlsteer.Options{})
			require.NoError(t, err)
			defer m.Close()
			tokens, err := m.Tokenize(letters(f.Sequences[0].Tokens), false)
			require.NoError(t, err)
			require.Equal(t, f.Sequences[0].Tokens, tokens)
			test(t, m, f)
		})
	}
}

// letters are a text of those tokens.
func letters(tokens []ggmlsteer.Token) string {
	const first = '一' // the first of thousands
	var text strings.Builder
	for _, t := range tokens {
		text.WriteRune(first + rune(t))
	}
	return text.String()
}

// withTokenizer is a copy of a GGUF file without tokenizer that has one.
func withTokenizer(t *testing.T, path string, vocabulary int) string {
	t.Helper()
	model, err := loader.CheckModel(path, loader.AllowNoTokenizer)
	require.NoError(t, err)
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	tokens := make([]string, vocabulary)
	for i := range tokens {
		tokens[i] = letters([]ggmlsteer.Token{ggmlsteer.Token(i)})
	}
	kv := slices.DeleteFunc(model.Metadata, func(e loader.KV) bool {
		// llama.cpp looks for tokens of its own in a vocabulary whose model is named phi3
		return e.Key == "general.name" || strings.HasPrefix(e.Key, "tokenizer.")
	})
	kv = append(kv,
		loader.KV{Key: "tokenizer.ggml.model", Value: "llama"},
		loader.KV{Key: "tokenizer.ggml.tokens", Value: tokens},
		loader.KV{Key: "tokenizer.ggml.scores", Value: make([]float32, vocabulary)},
		loader.KV{Key: "tokenizer.ggml.token_type", Value: slices.Repeat([]int32{1}, vocabulary)},
		loader.KV{Key: "tokenizer.ggml.add_bos_token", Value: false},
		loader.KV{Key: "tokenizer.ggml.add_space_prefix", Value: false},
	)
	// the data are the file's end, each tensor's padded to the alignment
	const alignment = 32
	size := int64(0)
	for _, w := range model.Tensors {
		size += (w.Bytes + alignment - 1) / alignment * alignment
	}
	rest := data[int64(len(data))-size:]
	var tensors []loader.TensorData
	for _, w := range model.Tensors {
		tensors = append(tensors, loader.TensorData{Name: w.Name, Type: w.Type, Shape: w.Shape, Data: strings.NewReader(string(rest[:w.Bytes]))})
		rest = rest[(w.Bytes+alignment-1)/alignment*alignment:]
	}
	copied := filepath.Join(t.TempDir(), filepath.Base(path))
	require.NoError(t, loader.WriteGGUF(copied, kv, tensors))
	return copied
}

// job is the fixture's sequences as examples, with its coldness and ε.
func (f *fixture) job() *Job {
	job := &Job{Options: DefaultOptions(), Start: map[string]loader.Parameters{}}
	job.Coldness, job.Eps = f.Coldness, f.Eps
	for _, s := range f.Sequences {
		if s.Example == len(job.Examples) {
			job.Examples = append(job.Examples, Example{Prompt: letters(s.Tokens[:s.Prompt])})
		}
		e := &job.Examples[s.Example]
		if completion := letters(s.Tokens[s.Prompt:]); s.Kind == "src" {
			e.Src = append(e.Src, completion)
		} else {
			e.Dst = append(e.Dst, completion)
		}
	}
	return job
}

// losses are those of a step, in the order of the fixture's sequences.
func (f *fixture) losses(t *testing.T, step Step) (losses []float64) {
	t.Helper()
	taken := map[string]int{}
	for _, s := range f.Sequences {
		side := 0
		if s.Kind == "dst" {
			side = 1
		}
		key := fmt.Sprint(s.Example, side)
		losses = append(losses, step.Losses[s.Example][side][taken[key]])
		taken[key]++
	}
	return losses
}

// The cases that a job can express, from its text to the gradient that Adam is given.
func TestEngineCases(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *ggmlsteer.Model, f *fixture) {
		tried := 0
		for _, c := range f.Cases {
			switch c.Name {
			case "unsteered", "middle_strengths", "middle_two_vectors":
				continue // a job always steers, with one vector, and its factors are 0, 1 and −1
			}
			if c.Operations[0].Left != nil {
				continue // affine
			}
			tried++
			t.Run(c.Name, func(t *testing.T) {
				job := f.job()
				job.LR, job.MaxIters = ptr(1.0), ptr(0)
				job.DoOneMinus, job.NormalizeTokenLength = c.OneMinus, c.Normalize
				job.OnlyHookPrompt = c.Name == "middle_prompt_only"
				if c.Satisfice != nil {
					// satisfice changes the gradient alone; a total below the target would end the run in any case
					job.Satisfice, job.TargetLoss = true, c.Satisfice
				}
				job.RegularizationWeight, job.SparsityWeight, job.EntropyWeight = 0, 0, 0
				for i := range job.Examples {
					if c.Token != nil {
						job.Examples[i].Token = span(t, c.Token[i])
					}
					job.Examples[i].Negative = c.Negative != nil && c.Negative[i]
				}
				for _, o := range c.Operations {
					job.Layers.List = append(job.Layers.List, o.Layer)
					job.Start[fmt.Sprint(o.Layer)] = loader.Parameters{Vector: o.Vectors[0]}
				}
				var steps []Step
				_, err := Run(context.Background(), m, job, func(s Step) { steps = append(steps, s) })
				require.NoError(t, err)
				require.Len(t, steps, 1)
				near(t, c.Total, steps[0].Loss, runLossTolerance, "total")
				for i, loss := range f.losses(t, steps[0]) {
					near(t, c.Losses[i], loss, caseLossTolerance, fmt.Sprintf("loss of sequence %d", i))
				}
				require.Len(t, steps[0].Layers, len(c.Gradient))
				for i, g := range c.Gradient {
					nearVector(t, doubles(g.Vectors[0]), steps[0].Layers[i].Gradient.Vector, caseGradientTolerance)
				}
			})
		}
		require.Equal(t, 11, tried)
	})
}

// Ten steps of Adam on the engine go where PyTorch's go.
func TestEngineDescents(t *testing.T) {
	eachFixture(t, func(t *testing.T, m *ggmlsteer.Model, f *fixture) {
		require.NotEmpty(t, f.Adam)
		for _, run := range f.Adam {
			t.Run(run.Name, func(t *testing.T) {
				job := f.job()
				job.LR, job.MaxIters = &run.LearningRate, ptr(len(run.Totals)-1)
				job.Layers.List = run.Layers
				job.Shared = len(run.Start) == 1 && len(run.Layers) > 1
				if run.Regularization != nil {
					job.RegularizationType = *run.Regularization
				}
				for i, key := range job.layerKeys(run.Layers) {
					job.Start[key] = loader.Parameters{Vector: run.Start[i]}
				}
				var steps []Step
				r, err := Run(context.Background(), m, job, func(s Step) { steps = append(steps, s) })
				require.NoError(t, err)
				require.Len(t, steps, len(run.Totals))
				for n, s := range steps {
					near(t, run.Totals[n], s.Loss, runLossTolerance, fmt.Sprintf("total after %d steps", n))
					for i, loss := range f.losses(t, s) {
						near(t, run.Losses[n][i], loss, runLossTolerance, fmt.Sprintf("loss of sequence %d after %d steps", i, n))
					}
				}
				require.Len(t, r.Steering.Params, len(run.Vectors))
				for i, v := range run.Vectors {
					nearVector(t, v, r.Steering.Params[i].Vector, runVectorTolerance)
				}
			})
		}
	})
}
