package loader

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

const (
	controlVectorArch = "controlvector"
	directionPrefix   = "direction."

	keyModelHint  = "controlvector.model_hint"
	keyLayerCount = "controlvector.layer_count"
)

// firstExpressible is the lowest layer that a control vector can steer: llama.cpp
// takes no direction before direction.1, the output of block 1.
const firstExpressible = 2

// A Numbering says which layer's input a control vector's direction.N was made for.
type Numbering int

const (
	// AsLlamaCpp is how llama.cpp uses every file, and repeng writes them:
	// direction.N acts at the output of block N, the input of layer N+1.
	AsLlamaCpp Numbering = iota
	// OutputFromZero is the same, and has a direction.0, too, which llama.cpp
	// refuses: EasySteer writes such files.
	OutputFromZero
	// OneLate is that of llama.cpp's cvector-generator and of jukofyork's control
	// vectors: direction.N was made from the output of block N−1, the input of
	// layer N, and llama.cpp uses it one block later.
	OneLate
)

// layer is the layer whose input direction.N steers.
func (n Numbering) layer(direction int) int {
	if n == OneLate {
		return direction
	}
	return direction + 1
}

// first is the lowest direction.
func (n Numbering) first() int {
	if n == OutputFromZero {
		return 0
	}
	return 1
}

// DirectionOf is the N of the direction.N that steers the input of a layer.
func DirectionOf(layer int) int { return layer - 1 }

// CheckControlVector is an *InputError where a control vector cannot express a
// steering: it adds the same vector to every token, from the input of layer 2 on.
func (s *Steering) CheckControlVector() error {
	switch {
	case s.Kind != Add:
		what := map[Kind]string{Clamp: "a clamp, which moves every token by another amount", Ablate: "an ablation, which moves every token by another amount", Affine: "affine, with matrices"}[s.Kind]
		return &InputError{
			Message: "a control vector can only add a vector, and this steering is " + what,
			Hint:    "--approximate -m MODEL finds the vector that is nearest to it; generate and chat use the file as it is",
		}
	case s.PromptOnly:
		return &InputError{
			Message: "a control vector steers every token, and this steering only those of the prompt",
			Hint:    "optimize without only_hook_prompt; generate and chat use the file as it is",
		}
	case len(s.Layers) > 0 && s.Layers[0] < firstExpressible:
		return &InputError{
			Message: fmt.Sprintf("layer %d cannot be steered by a control vector: llama.cpp begins at the output of block 1, which is the input of layer %d", s.Layers[0], firstExpressible),
			Hint:    fmt.Sprintf("optimize at layer %d or above; generate and chat use the file as it is", firstExpressible),
		}
	}
	return nil
}

// WriteControlVector writes a llama.cpp control vector, as WriteFile does. The
// same steering always gives the same bytes, and Read reads them back. Beside
// what llama.cpp asks for it holds where the vector comes from, under keys that
// other programs pass over.
func WriteControlVector(path string, s *Steering) error {
	if err := s.CheckControlVector(); err != nil {
		return err
	}
	if err := s.Validate(); err != nil {
		return fmt.Errorf("%s: this control vector cannot be written: %w", path, err)
	}
	kv := []KV{{keyArch, controlVectorArch}}
	if s.Arch != "" {
		kv = append(kv, KV{keyModelHint, s.Arch})
	}
	kv = append(kv, KV{keyLayerCount, uint32(len(s.Layers))})
	for _, e := range []struct{ key, value string }{{keyModelName, s.Model}, {keyRecipe, s.Recipe}, {keyOrigin, s.Origin}} {
		if e.value != "" {
			kv = append(kv, KV{e.key, e.value})
		}
	}
	var tensors []TensorData
	for i, l := range s.Layers {
		name := directionPrefix + strconv.Itoa(DirectionOf(l))
		tensors = append(tensors, TensorData{name, F32, []int64{int64(s.Embd)}, Floats(s.At(i).Vector)})
	}
	return WriteGGUF(path, kv, tensors)
}

// ReadControlVector reads a llama.cpp control vector as an Add steering. Arch is
// its model_hint, "" if it has none; Model, Recipe and Origin are there if llsteer wrote it.
func ReadControlVector(path string, numbering Numbering) (s *Steering, err error) {
	err = openGGUF(path, func(g *ggufFile) error {
		if !g.isControlVector() {
			return &InputError{Message: fmt.Sprintf("%s: this is no control vector (architecture %q)", path, fmt.Sprint(g.get(keyArch))), Hint: "llsteer inspect FILE says what a file holds"}
		}
		s, err = g.controlVector(numbering)
		return err
	})
	return s, err
}

func (g *ggufFile) isControlVector() bool {
	if arch := g.get(keyArch); arch != nil {
		return arch == controlVectorArch
	}
	// llama.cpp itself looks at the tensors only
	return len(g.tensors) > 0 && !slices.ContainsFunc(g.tensors, func(t Tensor) bool { return !strings.HasPrefix(t.Name, directionPrefix) })
}

// transformersArch are the GGUF architectures of models that the transformers
// library knows by another name; repeng writes its names into model_hint.
var transformersArch = map[string]string{
	"cohere": "command-r", "gemma3_text": "gemma3", "gpt_neox": "gptneox", "gpt_oss": "gpt-oss", "mistral": "llama",
	"mixtral": "llama", "phi": "phi2", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
}

func (g *ggufFile) controlVector(numbering Numbering) (*Steering, error) {
	if len(g.tensors) == 0 {
		return nil, inputError(g.path, "this control vector holds no direction")
	}
	s := &Steering{Kind: Add}
	var err error
	g.readTexts(map[string]*string{keyModelHint: &s.Arch, keyModelName: &s.Model, keyRecipe: &s.Recipe, keyOrigin: &s.Origin}, &err)
	if err != nil {
		return nil, err
	}
	if arch, ok := transformersArch[s.Arch]; ok {
		s.Arch = arch
	}
	directions := make(map[int]Tensor)
	for _, t := range g.tensors {
		number, isDirection := strings.CutPrefix(t.Name, directionPrefix)
		n, err := strconv.Atoi(number)
		length := t.Shape[0]
		switch {
		case !isDirection || err != nil || strconv.Itoa(n) != number:
			return nil, inputError(g.path, "tensor %q does not belong in a control vector, expected direction.1, direction.2 and so on", t.Name)
		case n < numbering.first() || n >= math.MaxInt32:
			return nil, inputError(g.path, "tensor %q does not belong in a control vector: directions count from %d", t.Name, numbering.first())
		case t.Type != F32 || t.Bytes != 4*length:
			return nil, inputError(g.path, "tensor %q is %v of shape %v, expected one row of F32", t.Name, t.Type, t.Shape)
		case s.Embd != 0 && length != int64(s.Embd):
			return nil, inputError(g.path, "tensor %q has %d numbers, and %q has %d", t.Name, length, g.tensors[0].Name, s.Embd)
		}
		s.Embd = int(length)
		s.Layers = append(s.Layers, numbering.layer(n))
		directions[numbering.layer(n)] = t
	}
	slices.Sort(s.Layers)
	for _, l := range s.Layers {
		vector, err := g.floats(directions[l])
		if err != nil {
			return nil, err
		}
		s.Params = append(s.Params, Parameters{Vector: vector})
	}
	if err := s.Validate(); err != nil {
		return nil, inputError(g.path, "this control vector cannot be used: %v", err)
	}
	return s, nil
}
