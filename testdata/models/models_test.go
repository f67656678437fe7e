// Package models tests the program on two public models, and against llama-server:
// `make test-models` fetches them, builds the program and runs this.
package models

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

// model is the path of one of the models that scripts/fetch-models.sh fetches.
func model(t *testing.T, name string) string {
	folder := os.Getenv("LLSTEER_MODELS")
	require.NotEmpty(t, folder, "LLSTEER_MODELS is not set: run make test-models")
	path := filepath.Join(folder, name)
	require.FileExists(t, path)
	return path
}

// llsteer runs the program with --json and reads its answer.
func llsteer[T any](t *testing.T, args ...string) T {
	cmd := exec.Command("../../bin/llsteer", append(args, "--json", "-q")...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "llsteer %s\n%s%s", strings.Join(args, " "), out, &stderr)
	var result T
	require.NoError(t, json.Unmarshal(out, &result), string(out))
	return result
}

type report struct {
	Iters   int
	Stop    string
	Loss    float64
	Losses  [][2][]float64
	Norms   map[string]float64
	LR      float64
	PeakRSS int64 `json:"peak_rss_bytes"`
}

// continued says how many of the prompts go on in a language with a steering.
func continued(t *testing.T, model, steering string, prompts []string, language string) int {
	args := []string{"generate", "-m", model, "-s", steering, "-n", "25"}
	for _, p := range prompts {
		args = append(args, "-p", p)
	}
	answer := llsteer[struct {
		Results []struct{ Prompt, Text string }
	}](t, args...)
	require.Len(t, answer.Results, len(prompts))
	n := 0
	for _, r := range answer.Results {
		told := demo.Language(r.Text)
		if told == "spanish" && isFrench(r.Text) {
			told = "french"
		}
		t.Logf("%-8s %q %q", told, r.Prompt, r.Text)
		if told == language {
			n++
		}
	}
	return n
}

// isFrench is for texts that demo.Language, which knows two languages, takes for Spanish.
func isFrench(text string) bool {
	words := strings.Fields(strings.ToLower(text))
	n := 0
	for _, w := range words {
		switch w {
		case "le", "les", "et", "une", "dans", "est", "était", "du", "il":
			n++
		}
	}
	return n >= 2
}

// The tutorial's example on Gemma 3 270M, as PyTorch has it on the dequantized
// weights: at layer 6 with lr 1.5 target 3 takes 13 to 17 steps (10 to 19 here) and the norm is
// about 195 (170 to 220); lr auto is that lr. At half the strength everyday
// prompts go on in the other language, both ways.
func TestRecipeOnGemma3(t *testing.T) {
	path := model(t, "gemma3-270m.gguf")
	file, err := os.Stat(path)
	require.NoError(t, err)
	out := filepath.Join(t.TempDir(), "spanish.gguf")
	for _, lr := range []string{"auto", "1.5"} { // the latter's vector is used below
		t.Run("lr "+lr, func(t *testing.T) {
			r := llsteer[report](t, "optimize", "-m", path, "recipe.yaml", "-o", out, "--lr", lr)
			t.Logf("%+v", r)
			require.Equal(t, "target_loss", r.Stop)
			require.LessOrEqual(t, r.Loss, 3.0)
			require.GreaterOrEqual(t, r.Iters, 10)
			require.LessOrEqual(t, r.Iters, 19)
			require.InDelta(t, 195, r.Norms["6"], 25)
			require.InDelta(t, 1.5, r.LR, 0.15)
			require.Positive(t, r.PeakRSS)
			require.LessOrEqual(t, r.PeakRSS, file.Size()+600e6, "memory")
		})
	}
	var prompts struct{ English, Spanish []string }
	data, err := os.ReadFile("everyday.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &prompts))
	const share = 0.85
	for _, way := range []struct {
		prompts  []string
		strength string
		language string
	}{{prompts.English, "0.5", "spanish"}, {prompts.Spanish, "-0.5", "english"}} {
		turned := continued(t, path, out+":"+way.strength, way.prompts, way.language)
		t.Logf("at strength %s %d of %d prompts go on in %s", way.strength, turned, len(way.prompts), way.language)
		require.GreaterOrEqual(t, float64(turned), share*float64(len(way.prompts)))
		unsteered := continued(t, path, out+":0", way.prompts, way.language)
		require.LessOrEqual(t, unsteered, len(way.prompts)/10, "without steering they do not")
	}
}

// With the tutorial's weights and each layer's own units one layer in the middle third wins: it is
// several times as long, in its units, as any other. (Without, layer 0 wins, whose stream is smallest.)
// The loss goes up and down in such a run, and how many times as long is not settled: after 60 to 160
// steps, with two processors' arithmetic, between 4 and 23 times, and 8 and 12 after 80. Three is asked for.
func TestAMiddleLayerWinsOnGemma3(t *testing.T) {
	r := llsteer[struct {
		Norms map[string]float64
		LRs   map[string]float64
	}](t, "optimize", "-m", model(t, "gemma3-270m.gguf"), "recipe.yaml", "--layer", "all", "--do-relative-scale", "--lr", "0.03", "--max-iters", "80",
		"--target-loss", "none", "--regularization-weight", "0.1", "--sparsity-weight", "0.1", "--entropy-weight", "10", "-o", filepath.Join(t.TempDir(), "all.gguf"))
	require.Len(t, r.Norms, 18)
	units := func(layer string) float64 { return r.Norms[layer] * 0.03 / r.LRs[layer] }
	longest := "0"
	for layer := range r.Norms {
		if units(layer) > units(longest) {
			longest = layer
		}
	}
	n, err := strconv.Atoi(longest)
	require.NoError(t, err)
	require.True(t, n >= 6 && n < 12, "layer %d won", n)
	for layer := range r.Norms {
		require.True(t, layer == longest || units(layer) <= units(longest)/3, "layer %s has %v units, the winner %v", layer, units(layer), units(longest))
	}
}

// The command that is for a Gemma-2-2B of the user's makes all its runs on this model, too. The
// log-probabilities are those that PyTorch has in float32 on the dequantized weights.
func TestReproduceOnGemma3(t *testing.T) {
	type result struct {
		Steps int
		Loss  float64
		Norm  float64
		Layer *int
	}
	table := llsteer[struct {
		Logprobs []struct{ Ours float64 }
		Runs     []struct {
			Name, Stop string
			Ours       result
		}
		Texts []struct{ Text string }
	}](t, "reproduce", "-m", model(t, "gemma3-270m.gguf"), "--layer", "9", "--max-iters", "2")
	require.Len(t, table.Logprobs, 2)
	require.InDelta(t, -12.69, table.Logprobs[0].Ours, 0.006)
	require.InDelta(t, -8.07, table.Logprobs[1].Ours, 0.006)
	require.Len(t, table.Runs, 9)
	for _, run := range table.Runs {
		require.Equal(t, "max_iters", run.Stop, run.Name)
		require.Equal(t, 2, run.Ours.Steps, run.Name)
		require.True(t, run.Ours.Loss > 0 && run.Ours.Norm > 0, run.Name)
	}
	require.NotNil(t, table.Runs[8].Ours.Layer)
	require.Len(t, table.Texts, 4)
	for _, text := range table.Texts {
		require.NotEmpty(t, text.Text)
	}
}

// A vector on SmolLM2 135M Instruct, in its chat template: it likes the sea
// better than the mountains, also where another question is asked.
func TestChatOnSmolLM2(t *testing.T) {
	const (
		question  = "Where do you want to spend your holidays?"
		sea       = "At the sea, on a beach."
		mountains = "In the mountains, on a hiking trail."
		another   = "What is the best place for a weekend?"
	)
	path := model(t, "smollm2-135m.gguf")
	out := filepath.Join(t.TempDir(), "sea.gguf")
	r := llsteer[report](t, "optimize", "-m", path, "--chat", "--layer", "10", "--target-loss", "3", "--max-iters", "60", "-o", out,
		"--prompt", question, "--src", mountains, "--dst", sea)
	t.Logf("%+v", r)
	require.Equal(t, "target_loss", r.Stop)
	require.LessOrEqual(t, r.Loss, 3.0)

	gain := func(question, completion string) float64 {
		logprob := func(strength string) float64 {
			return llsteer[struct{ Logprob float64 }](t, "logprob", "-m", path, "--chat", "-s", out+":"+strength, "-p", question, "-c", completion).Logprob
		}
		gain := logprob("1") - logprob("0")
		t.Logf("%s %s %+.1f nats", question, completion, gain)
		return gain
	}
	require.Greater(t, gain(question, sea), 10.0)
	require.Less(t, gain(question, mountains), 0.0)
	// (Not so the texts that it writes: at strengths where they speak of beaches, they do so or not by the last digit of a logit.)
	require.Greater(t, gain(another, "A beach by the sea."), 1.0)
	require.Less(t, gain(another, "A trail in the mountains."), -5.0)
}

// Gradients agree with central differences on these weights, in all their
// quantizations, at the first, a middle and the last layer.
func TestGradients(t *testing.T) {
	for name, layers := range map[string][]int{"gemma3-270m.gguf": {0, 9, 17}, "smollm2-135m.gguf": {0, 15, 29}} {
		for _, layer := range layers {
			r := llsteer[struct {
				OK     bool
				Layers map[string]struct {
					RelativeError float64 `json:"relative_error"`
				}
			}](t, "check", "-m", model(t, name), "--layer", strconv.Itoa(layer))
			t.Logf("%s, layer %d: %+v", name, layer, r)
			require.True(t, r.OK)
			require.LessOrEqual(t, r.Layers[strconv.Itoa(layer)].RelativeError, 1e-3)
		}
	}
}

// What must not become slow, as ratios of times in one run; see bench/regression. Each bound is about
// one and a half times what was measured on two quiet cores, and none is so low that it cannot be true.
func TestSpeed(t *testing.T) {
	bounds := map[string][2]float64{
		"step": {0.1, 4}, "bf16": {0.1, 1.5}, "examples": {1, 5},
		"add": {0.7, 1.3}, "clamp": {0.7, 1.3}, "matrix": {0.7, 1.3},
	}
	for _, name := range []string{"gemma3-270m.gguf", "smollm2-135m.gguf"} {
		cmd := exec.Command("go", "run", "../../bench/regression", "-m", model(t, name))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		require.NoError(t, err, stderr.String())
		t.Logf("%s: %s", name, out)
		var found map[string]float64
		require.NoError(t, json.Unmarshal(out, &found))
		require.Len(t, found, len(bounds))
		for what, bound := range bounds {
			require.GreaterOrEqual(t, found[what], bound[0], "%s: %s", name, what)
			require.LessOrEqual(t, found[what], bound[1], "%s: %s", name, what)
		}
	}
}
