package ggmlsteer

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/llsteer/llsteer/loader"
	"github.com/stretchr/testify/require"
)

// A tiny random model of every architecture that llama.cpp knows: does it have a gradient,
// and is that right? docs/architectures.md is the table of what is found.

var updateTable = flag.Bool("update", false, "rewrite docs/architectures.md")

const (
	architectureTable = "../docs/architectures.md"
	// the environment variable that makes the test binary try one architecture and print a trial: a
	// model that llama.cpp aborts on ends that process only
	architectureToTry = "LLSTEER_TEST_ARCHITECTURE"
	modelFolder       = "LLSTEER_TEST_FOLDER"
)

// A trial is what is found of one architecture.
type trial struct {
	Arch     string
	Gradient bool
	Reason   string   // without gradient: why
	Error    float64  // of the gradient, largest, relative to its norm
	Decoded  float64  // log p of the session against those of the decoder, largest difference
	Left     []string // operations that a device leaves to the CPU: see device_test.go
}

// settings are what a model needs beside what all have; see modelKV.
type settings map[string]any

const (
	trialWidth, trialHeads, trialHead = 64, 4, 16 // of the trials' models
	trialVocab, trialBlocks           = 96, 4
)

// ofAll are the hyperparameters of every model; an architecture reads those that it knows.
func ofAll() settings {
	return settings{
		"context_length": uint32(64), "embedding_length": uint32(trialWidth), "block_count": uint32(trialBlocks), "feed_forward_length": uint32(80),
		"attention.head_count": uint32(trialHeads), "attention.head_count_kv": uint32(2), "attention.key_length": uint32(trialHead), "attention.value_length": uint32(trialHead),
		"rope.dimension_count": uint32(trialHead), "rope.freq_base": float32(10000), "vocab_size": uint32(trialVocab),
		"attention.layer_norm_rms_epsilon": float32(1e-5), "attention.layer_norm_epsilon": float32(1e-5), "attention.sliding_window": uint32(6),
		"logit_scale": float32(0.5), "residual_scale": float32(0.5), "embedding_scale": float32(2), "attention.scale": float32(0.25),
	}
}

var (
	// everyHead has keys and values
	everyHead = settings{"attention.head_count_kv": uint32(trialHeads)}
	alibi     = settings{"attention.head_count_kv": uint32(trialHeads), "attention.max_alibi_bias": float32(8)}
	// mixture uses all of its experts: which ones are chosen is not differentiable
	mixture = settings{"expert_count": uint32(4), "expert_used_count": uint32(4), "expert_feed_forward_length": uint32(32),
		"expert_shared_feed_forward_length": uint32(32), "expert_shared_count": uint32(1), "leading_dense_block_count": uint32(1), "expert_gating_func": uint32(1)}
	stateSpace = settings{"ssm.conv_kernel": uint32(4), "ssm.inner_size": uint32(2 * trialWidth), "ssm.state_size": uint32(16), "ssm.time_step_rank": uint32(8), "ssm.group_count": uint32(2)}
	rwkv       = settings{"wkv.head_size": uint32(trialHead), "attention.head_count": uint32(0), "attention.head_count_kv": uint32(0)}
	lowRank    = settings{"attention.q_lora_rank": uint32(24), "attention.kv_lora_rank": uint32(16), "rope.dimension_count": uint32(8), "attention.head_count_kv": uint32(trialHeads)}
)

func (s settings) and(more ...settings) settings {
	all := settings{}
	for _, part := range append([]settings{s}, more...) {
		for key, value := range part {
			all[key] = value
		}
	}
	return all
}

var (
	sections = settings{"rope.dimension_sections": []int32{2, 3, 3, 0}}
	encoder  = settings{"attention.causal": false}
)

var settingsOf = map[string]settings{
	"afmoe":            mixture,
	"arctic":           mixture,
	"arwkv7":           rwkv.and(settings{"token_shift_count": uint32(1), "attention.gate_lora_rank": uint32(8)}),
	"baichuan":         everyHead.and(settings{"block_count": uint32(32)}),
	"bailingmoe":       mixture,
	"bailingmoe2":      mixture,
	"bert":             encoder,
	"bloom":            everyHead,
	"chameleon":        everyHead.and(settings{"swin_norm": true, "vocab_size": uint32(8300)}),
	"cogvlm":           everyHead,
	"dbrx":             mixture.and(settings{"attention.clamp_kqv": float32(8)}),
	"deepseek":         mixture,
	"deepseek2":        mixture.and(lowRank),
	"dots1":            mixture.and(everyHead),
	"ernie4_5-moe":     mixture,
	"falcon":           everyHead,
	"falcon-h1":        stateSpace,
	"gemma3":           {"block_count": uint32(7)},
	"gemma3n":          {"block_count": uint32(22), "embedding_length_per_layer_input": uint32(16), "altup.num_inputs": uint32(4), "attention.shared_kv_layers": uint32(10)},
	"glm4moe":          mixture,
	"gpt-oss":          mixture,
	"gpt2":             everyHead,
	"gptneox":          everyHead.and(settings{"use_parallel_residual": true}),
	"granitehybrid":    stateSpace,
	"granitemoe":       mixture,
	"grok":             mixture,
	"grovemoe":         mixture.and(settings{"experts_per_group": uint32(1)}),
	"hunyuan-moe":      mixture,
	"jais":             alibi,
	"jamba":            stateSpace,
	"jina-bert-v2":     encoder.and(everyHead, settings{"/tokenizer.ggml.token_type_count": uint32(1)}),
	"jina-bert-v3":     encoder.and(everyHead),
	"lfm2moe":          mixture,
	"llada-moe":        mixture,
	"llama4":           mixture,
	"mamba":            stateSpace,
	"mamba2":           stateSpace,
	"minicpm3":         lowRank,
	"minimax-m2":       mixture,
	"mpt":              alibi,
	"nemotron_h":       stateSpace.and(settings{"expert_feed_forward_length": uint32(32)}),
	"nemotron_h_moe":   stateSpace.and(mixture),
	"neo-bert":         encoder.and(everyHead),
	"nomic-bert":       encoder.and(everyHead),
	"nomic-bert-moe":   encoder.and(everyHead, mixture),
	"olmoe":            mixture.and(everyHead),
	"phi2":             everyHead,
	"phimoe":           mixture,
	"plamo":            everyHead,
	"plamo2":           stateSpace,
	"plm":              lowRank,
	"qwen":             everyHead,
	"qwen2moe":         mixture,
	"qwen2vl":          sections,
	"qwen3moe":         mixture,
	"qwen3next":        stateSpace.and(mixture),
	"qwen3vl":          sections,
	"qwen3vlmoe":       mixture.and(sections),
	"refact":           everyHead,
	"rnd1":             mixture,
	"rwkv6":            rwkv,
	"rwkv6qwen2":       rwkv.and(settings{"token_shift_count": uint32(1)}),
	"rwkv7":            rwkv.and(settings{"attention.gate_lora_rank": uint32(8)}),
	"smallthinker":     mixture,
	"stablelm":         everyHead,
	"starcoder":        everyHead,
	"t5":               everyHead,
	"t5encoder":        everyHead,
	"wavtokenizer-dec": encoder,
}

// smaller are factors of the matrices of architectures that are too curved otherwise:
// gemma3n keeps the few largest of its activations, block after block.
var smaller = map[string]float32{"gemma3n": 0.1}

// optionalTensors are those that the loader can do without, and the graph cannot.
var optionalTensors = map[string]map[string][]int64{
	"dream":          biases(),
	"falcon-h1":      inEachBlock("ssm_conv1d.bias", 2*trialWidth+2*2*16),
	"jina-bert-v3":   inEachBlock("attn_qkv.weight", trialWidth, 3*trialWidth),
	"nomic-bert":     inEachBlock("attn_qkv.weight", trialWidth, 3*trialWidth),
	"nomic-bert-moe": inEachBlock("attn_qkv.weight", trialWidth, 3*trialWidth),
	"phi3":           inEachBlock("attn_qkv.weight", trialWidth, 2*trialWidth),
	"qwen2vl":        biases(),
	"rwkv6":          inEachBlock("time_mix_lerp_fused.weight", trialWidth, 1, 1, 5),
	"t5":             {"enc.blk.0.attn_rel_b.weight": {trialHeads, 4}, "dec.blk.0.attn_rel_b.weight": {trialHeads, 4}},
	"t5encoder":      {"enc.blk.0.attn_rel_b.weight": {trialHeads, 4}},
	"solar":          {"output.weight": {trialWidth, trialVocab}},
}

func biases() map[string][]int64 {
	all := inEachBlock("attn_q.bias", trialWidth)
	maps.Copy(all, inEachBlock("attn_k.bias", trialWidth/2))
	maps.Copy(all, inEachBlock("attn_v.bias", trialWidth/2))
	return all
}

func inEachBlock(name string, shape ...int64) map[string][]int64 {
	tensors := map[string][]int64{}
	for l := range trialBlocks {
		tensors[fmt.Sprintf("blk.%d.%s", l, name)] = shape
	}
	return tensors
}

// --- in a process of its own ----------------------------------------------------

func tryArchitecture(arch string) {
	t, err := try(arch, os.Getenv(modelFolder))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(t)
}

func try(arch, folder string) (*trial, error) {
	t := &trial{Arch: arch}
	m, err := generate(arch, folder)
	if err != nil {
		_, reason, _ := strings.Cut(err.Error(), "error loading model: ")
		reason, _, _ = strings.Cut(reason, ";")
		t.Reason = "llama.cpp does not load it: " + strings.TrimPrefix(reason, "error loading model hyperparameters: ")
		return t, nil
	}
	defer m.Close()
	last := m.info.Layers - 1
	for _, layers := range [][]int{{0}, {1}, {last/2 + 1}, {last}, {0, 1, last/2 + 1, last}} {
		if err := m.Differentiable(layers); err != nil {
			if t.Gradient {
				return nil, fmt.Errorf("layers %v have no gradient, and others do: %w", layers, err)
			}
			t.Reason, err = refusal(m, layers, err)
			return t, err
		}
		t.Gradient = true
		if os.Getenv(mockAs) != "" {
			t.Left, err = leftToCPU(m, layers)
			return t, err
		}
		if err := t.check(m, layers); err != nil {
			return nil, fmt.Errorf("layers %v: %w", layers, err)
		}
	}
	return t, nil
}

// refusal is the reason that a model's error gives; a session must be refused likewise.
func refusal(m *Model, layers []int, err error) (reason string, wrong error) {
	begins := "models of architecture " + m.info.Arch + " have no gradient here: "
	reason, found := strings.CutPrefix(err.Error(), begins)
	var input *loader.InputError
	if !found || !errors.As(err, &input) {
		return "", fmt.Errorf("expected %q, found %w", begins, err)
	}
	_, again := m.NewSession(SessionOptions{Layers: layers, Vectors: 1, Coldness: 1}, trialSequences(m))
	if again == nil || again.Error() != err.Error() {
		return "", fmt.Errorf("a session is refused with %v, not with %w", again, err)
	}
	return reason, nil
}

// trialSequences are two with a prefix in common, longer than the sliding window, and one by itself.
func trialSequences(m *Model) []Sequence {
	random := rand.New(rand.NewPCG(14, 14))
	prompt := randomTokens(random, 9, m.info.Vocab)
	var sequences []Sequence
	for _, tokens := range [][]Token{
		slices.Concat(prompt, randomTokens(random, 3, m.info.Vocab)), slices.Concat(prompt, randomTokens(random, 2, m.info.Vocab)), randomTokens(random, 12, m.info.Vocab),
	} {
		sequences = append(sequences, Sequence{Tokens: tokens, Prompt: 9, Vector: [][]float32{ones(len(tokens))}})
	}
	return sequences
}

// check compares the session with the decoder, and its gradient with differences.
func (t *trial) check(m *Model, layers []int) error {
	// along a direction of norm 1, of a stream whose norm is 2 and more. ReLUs have corners, and some
	// of these random models are very curved: the step at which the two agree best counts. A wrong
	// gradient agrees at none.
	steps := []float64{1e-2, 3e-3, 1e-3, 3e-4}
	ctx := context.Background()
	sequences := trialSequences(m)
	s, err := m.NewSession(SessionOptions{Layers: layers, Vectors: 1, Coldness: 1}, sequences)
	if err != nil {
		return err
	}
	defer s.Close()
	random := rand.New(rand.NewPCG(15, 15))
	var at []Operation
	vectors := map[int][]float32{}
	for _, l := range layers {
		vectors[l] = randomVector(random, m.info.Embd, 1)
		at = append(at, Operation{Vectors: [][]float32{vectors[l]}})
	}
	probs, err := s.Forward(ctx, at)
	if err != nil {
		return err
	}
	var weights [][]float64
	for i, q := range sequences {
		weights = append(weights, slices.Repeat([]float64{1}, len(q.Tokens)-q.Prompt))
		decoded, err := m.Logprobs(ctx, q.Tokens, q.Prompt, 1, F32, Active{Steering: added(vectors), Strength: 1})
		if err != nil {
			return err
		}
		for j, p := range decoded {
			t.Decoded = most(t.Decoded, math.Abs(p.Log-probs[i][j].Log))
		}
	}
	gradient, err := s.Backward(ctx, weights)
	if err != nil {
		return err
	}
	norm := normOf(gradient)
	if !(norm > 1e-3) {
		return fmt.Errorf("the gradient is %v: nothing to compare", norm)
	}
	if err := sameInLittleMemory(m, layers, sequences, at, weights, probs, gradient); err != nil {
		return err
	}
	for _, direction := range [][]Operation{gradient, likeAtRandom(random, gradient)} {
		length, best := normOf(direction), math.Inf(1)
		for _, h := range steps {
			found := slope(func(step float64) float64 {
				probs, wrong := s.Forward(ctx, moved(at, direction, step/length))
				err = errors.Join(err, wrong)
				sum := 0.0
				for _, p := range slices.Concat(probs...) {
					sum += p.Log
				}
				return sum
			}, h)
			if err != nil {
				return err
			}
			if off := math.Abs(found-dot(gradient, direction)/length) / norm; off < best {
				best = off // not NaN
			}
		}
		t.Error = most(t.Error, best)
	}
	return nil
}

// sameInLittleMemory is an error unless a session that computes everything in parts, and twice
// for the gradient, finds the same: but for the order in which the parts' gradients are added.
func sameInLittleMemory(m *Model, layers []int, sequences []Sequence, at []Operation, weights [][]float64, probs [][]Prob, gradient []Operation) error {
	s, err := m.NewSession(SessionOptions{Layers: layers, Vectors: 1, Coldness: 1, Memory: 1}, sequences)
	if err != nil {
		return err
	}
	defer s.Close()
	found, err := s.Forward(context.Background(), at)
	if err != nil {
		return err
	}
	for i := range probs {
		for j := range probs[i] {
			if off := math.Abs(found[i][j].Log - probs[i][j].Log); !(off <= logProbTolerance) {
				return fmt.Errorf("in little memory, log p of target %d of sequence %d is off by %v", j, i, off)
			}
		}
	}
	other, err := s.Backward(context.Background(), weights)
	if err != nil {
		return err
	}
	if off := normOf(moved(other, gradient, -1)) / normOf(gradient); !(off <= gradientTolerance) {
		return fmt.Errorf("in little memory the gradient is off by %v of its norm", off)
	}
	return nil
}

// most is the larger number, with NaN and infinity as the largest that JSON can hold.
func most(a, b float64) float64 {
	if !(b <= math.MaxFloat64) {
		return math.MaxFloat64
	}
	return max(a, b)
}

var (
	missingKey    = regexp.MustCompile(`(?:array )?key not found in model: ([^\s;]+)`)
	missingTensor = regexp.MustCompile(`missing tensor '([^']+)'|tensor '([^']+)' not found`)
	wrongShape    = regexp.MustCompile(`tensor '([^']+)' has wrong shape; expected ([ \d,]+), got`)
	ofABlock      = regexp.MustCompile(`^blk\.\d+\.`)
	aFraction     = regexp.MustCompile(`scale|eps|bias|alpha|base|factor|clamp|beta`)
)

// generate writes a model of whatever tensors llama.cpp's loader asks for, and opens it. Mostly
// all blocks have the tensors that the first two have; where the loader then finds that
// there are too many, it has to ask for each.
func generate(arch, folder string) (*Model, error) {
	m, err := generateAs(arch, folder, true)
	if err != nil && strings.Contains(err.Error(), "wrong number of tensors") {
		return generateAs(arch, folder, false)
	}
	return m, err
}

func generateAs(arch, folder string, alike bool) (*Model, error) {
	values := ofAll().and(settingsOf[arch])
	shapes := map[string][]int64{}
	for name, shape := range optionalTensors[arch] {
		shapes[name] = shape
	}
	path := filepath.Join(folder, arch+".gguf")
	var last error
	for range 2000 {
		if err := writeTrial(path, arch, values, shapes, false); err != nil {
			return nil, err
		}
		m, err := open(path, Options{Threads: 1})
		if err == nil {
			m.Close()
			if err := writeTrial(path, arch, values, shapes, true); err != nil {
				return nil, err
			}
			return open(path, Options{Threads: 1, GPULayers: testOptions().GPULayers})
		}
		last = err
		if found := missingKey.FindStringSubmatch(err.Error()); found != nil {
			key := strings.TrimPrefix(found[1], arch+".")
			if key == found[1] {
				key = "/" + key
			}
			values[key] = uint32(4)
			if aFraction.MatchString(key) {
				values[key] = float32(1)
			}
		} else if found := missingTensor.FindStringSubmatch(err.Error()); found != nil {
			name := found[1] + found[2]
			shapes[name] = []int64{7} // to be told
			if shape := shapes[ofABlock.ReplaceAllString(name, "blk.0.")]; shape != nil {
				shapes[name] = shape
				blocks, _ := values["block_count"].(uint32)
				for l := 2; alike && l < int(blocks); l++ {
					shapes[ofABlock.ReplaceAllString(name, fmt.Sprintf("blk.%d.", l))] = shape
				}
			}
		} else if found := wrongShape.FindStringSubmatch(err.Error()); found != nil {
			shapes[found[1]] = nil
			for number := range strings.SplitSeq(found[2], ",") {
				n, _ := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
				shapes[found[1]] = append(shapes[found[1]], n)
			}
		} else {
			break
		}
	}
	return nil, last
}

func writeTrial(path, arch string, values settings, shapes map[string][]int64, random bool) error {
	var tensors []loader.TensorData
	source := rand.New(rand.NewPCG(1, 1))
	for _, name := range slices.Sorted(maps.Keys(shapes)) {
		w := tensor{name: name, shape: shapes[name]}
		data := make([]float32, elements(w.shape))
		if random {
			data = randomWeights(source, arch, w)
			if factor := smaller[arch]; factor != 0 && len(w.shape) > 1 {
				for i := range data {
					data[i] *= factor
				}
			}
		}
		tensors = append(tensors, loader.TensorData{Name: name, Type: loader.F32, Shape: w.shape, Data: loader.Floats(data)})
	}
	return loader.WriteGGUF(path, modelKV(arch, values), tensors)
}

// --- the table --------------------------------------------------------------------

func TestArchitectures(t *testing.T) {
	names := llamaCppArchitectures(t)
	trials := make([]*trial, len(names))
	t.Run("each", func(t *testing.T) {
		for i, name := range names {
			t.Run(name, func(t *testing.T) {
				t.Parallel()                                    // as many as there are CPUs
				trials[i] = &trial{Arch: name, Reason: "fails"} // unless
				trials[i] = tryInAProcess(t, name)
				if trials[i].Gradient {
					require.True(t, trials[i].Error <= differenceTolerance, "the gradient is off by %v of its norm", trials[i].Error)
					require.True(t, trials[i].Decoded <= 2*logProbTolerance, "the session's log p are %v from the decoder's", trials[i].Decoded)
				}
			})
		}
	})
	if t.Failed() {
		return
	}
	page := tableOf(trials)
	if *updateTable {
		require.NoError(t, os.WriteFile(architectureTable, []byte(page), 0o666))
	}
	committed, err := os.ReadFile(architectureTable)
	require.NoError(t, err)
	require.Equal(t, withoutErrors(page), withoutErrors(string(committed)), "run go test ./ggmlsteer -run Architectures -update")
}

// llamaCppArchitectures are those of the pinned source.
func llamaCppArchitectures(t *testing.T) (names []string) {
	t.Helper()
	out, err := exec.Command("go", "mod", "download", "-json", "github.com/ollama/ollama").Output()
	require.NoError(t, err)
	var module struct{ Dir string }
	require.NoError(t, json.Unmarshal(out, &module))
	source, err := os.ReadFile(filepath.Join(module.Dir, "llama/llama.cpp/src/llama-arch.cpp"))
	require.NoError(t, err)
	for _, found := range regexp.MustCompile(`\{ LLM_ARCH_\w+, +"([^"(]+)" +\}`).FindAllStringSubmatch(string(source), -1) {
		names = append(names, found[1])
	}
	require.Greater(t, len(names), 100)
	slices.Sort(names)
	return names
}

func tryInAProcess(t *testing.T, name string, env ...string) *trial {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, os.Args[0])
	command.Env = append(append(os.Environ(), architectureToTry+"="+name, modelFolder+"="+t.TempDir(), "GGML_NO_BACKTRACE=1", "GOTRACEBACK=none"), env...)
	var problem strings.Builder
	command.Stderr = &problem
	out, err := command.Output()
	require.NoError(t, err, problem.String())
	found := new(trial)
	require.NoError(t, json.Unmarshal(out, found))
	require.Equal(t, name, found.Arch)
	return found
}

func tableOf(trials []*trial) string {
	var page strings.Builder
	with := 0
	for _, t := range trials {
		if t.Gradient {
			with++
		}
	}
	fmt.Fprintf(&page, `# Architectures

What llsteer can do with the %d architectures that its llama.cpp knows: it finds steerings for the %d that have a gradient,
and says why not for the others. Generating with a steering needs no gradient.

`+"`go test ./ggmlsteer -run Architectures -update`"+` writes this page. It makes a tiny random model of each architecture, of the tensors
that llama.cpp's loader asks for, and compares the gradient of steerings at layers 0, 1, the middle, the last and all of these
with central differences: the largest error is that, in parts of the gradient's norm (float32 leaves about 1e-4; 1e-3
fails the test). Log-probabilities are compared with those of steered decoding, too. Mixtures of experts use all their
experts in these models, since the choice of experts jumps.

| architecture | gradient | error below | why not |
| --- | --- | --- | --- |
`, len(trials), with)
	for _, t := range trials {
		if t.Gradient {
			fmt.Fprintf(&page, "| %s | yes | 1e%d | |\n", t.Arch, int(math.Ceil(math.Log10(t.Error))))
		} else {
			fmt.Fprintf(&page, "| %s | no | | %s |\n", t.Arch, t.Reason)
		}
	}
	return page.String()
}

// withoutErrors is the table without its numbers, which may differ on another machine.
func withoutErrors(page string) string {
	return regexp.MustCompile(`\| 1e-\d+ \|`).ReplaceAllString(page, "| |")
}
