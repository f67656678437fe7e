package loader

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A steering file is a GGUF file with an architecture of its own, so that no
// program takes it for a model or a control vector. docs/steering-file.md describes it.
const (
	steeringArch    = "llsteer"
	steeringVersion = 1

	keyArch          = "general.architecture"
	keyVersion       = "llsteer.version"
	keyKind          = "llsteer.kind"
	keyClamp         = "llsteer.clamp"
	keyLayers        = "llsteer.layers"
	keyShared        = "llsteer.shared"
	keyPromptOnly    = "llsteer.prompt_only"
	keyModelArch     = "llsteer.model.architecture"
	keyModelEmbd     = "llsteer.model.embedding_length"
	keyModelName     = "llsteer.model.name"
	keyRecipe        = "llsteer.recipe"
	keyOrigin        = "llsteer.origin"
	tensorPrefix     = "steering."
	sharedParameters = "shared" // stands for the layer in a tensor's name
)

// Write writes a steering file, as WriteFile does. The same steering always
// gives the same bytes. A steering that Validate refuses is not written.
func Write(path string, s *Steering) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("%s: this steering cannot be written: %w", path, err)
	}
	kv, tensors := s.gguf()
	return WriteGGUF(path, kv, tensors)
}

// gguf is what a steering file holds.
func (s *Steering) gguf() (kv []KV, tensors []TensorData) {
	layers := make([]uint32, len(s.Layers))
	for i, l := range s.Layers {
		layers[i] = uint32(l)
	}
	kv = []KV{
		{keyArch, steeringArch},
		{keyVersion, uint32(steeringVersion)},
		{keyKind, string(s.Kind)},
		{keyLayers, layers},
		{keyShared, s.Shared},
		{keyPromptOnly, s.PromptOnly},
		{keyModelEmbd, uint32(s.Embd)},
	}
	if s.Kind == Clamp {
		kv = append(kv, KV{keyClamp, s.Clamp})
	}
	for _, e := range []struct{ key, value string }{{keyModelArch, s.Arch}, {keyModelName, s.Model}, {keyRecipe, s.Recipe}, {keyOrigin, s.Origin}} {
		if e.value != "" {
			kv = append(kv, KV{e.key, e.value})
		}
	}
	for i, p := range s.Params {
		prefix := tensorPrefix + s.parametersName(i) + "."
		tensors = append(tensors, TensorData{prefix + "vector", F32, []int64{int64(s.Embd)}, Floats(p.Vector)})
		if rank := len(p.Left); rank > 0 {
			shape := []int64{int64(s.Embd), int64(rank)}
			tensors = append(tensors,
				TensorData{prefix + "left", F32, shape, Floats(slices.Concat(p.Left...))},
				TensorData{prefix + "right", F32, shape, Floats(slices.Concat(p.Right...))})
		}
	}
	return kv, tensors
}

// parametersName is how tensors name the layer of Params[i].
func (s *Steering) parametersName(i int) string {
	if s.Shared {
		return sharedParameters
	}
	return strconv.Itoa(s.Layers[i])
}

// Read reads a steering file or a llama.cpp control vector, as
// ReadControlVector does with AsLlamaCpp.
func Read(path string) (s *Steering, err error) {
	err = openGGUF(path, func(g *ggufFile) error {
		s, err = g.steering()
		return err
	})
	return s, err
}

// steering reads whichever kind of steering the file holds.
func (g *ggufFile) steering() (*Steering, error) {
	arch, _, err := lookup[string](g, keyArch)
	if err != nil {
		return nil, err
	}
	switch {
	case arch == steeringArch:
		return g.steeringFile()
	case g.isControlVector():
		return g.controlVector(AsLlamaCpp)
	case arch == "":
		return nil, inputError(g.path, "this is neither a steering nor a control vector: it has no %s", keyArch)
	default:
		return nil, &InputError{
			Message: fmt.Sprintf("%s: this is a model or part of one (architecture %q), expected a steering", g.path, arch),
			Hint:    "models are given with -m, steerings with -s",
		}
	}
}

func (g *ggufFile) steeringFile() (*Steering, error) {
	version, err := needed[uint32](g, keyVersion)
	if err != nil {
		return nil, err
	}
	if version != steeringVersion {
		return nil, &InputError{
			Message: fmt.Sprintf("%s: this is a steering file of version %d, expected %d", g.path, version, steeringVersion),
			Hint:    "a newer llsteer wrote it",
		}
	}
	s := &Steering{}
	var kind string
	var layers []uint32
	var embd uint32
	read(g, keyKind, &kind, &err)
	read(g, keyLayers, &layers, &err)
	read(g, keyModelEmbd, &embd, &err)
	read(g, keyShared, &s.Shared, &err)
	read(g, keyPromptOnly, &s.PromptOnly, &err)
	s.Kind = Kind(kind)
	if s.Kind == Clamp {
		read(g, keyClamp, &s.Clamp, &err)
	}
	g.readTexts(map[string]*string{keyModelArch: &s.Arch, keyModelName: &s.Model, keyRecipe: &s.Recipe, keyOrigin: &s.Origin}, &err)
	if err != nil {
		return nil, err
	}
	if err := s.Kind.validate(); err != nil {
		return nil, inputError(g.path, "this steering cannot be used: %v", err)
	}
	s.Embd = int(embd)
	for _, l := range layers {
		s.Layers = append(s.Layers, int(l))
	}
	if err := g.parameters(s); err != nil {
		return nil, err
	}
	if err := s.Validate(); err != nil {
		return nil, inputError(g.path, "this steering cannot be used: %v", err)
	}
	return s, nil
}

// readTexts reads texts that may be missing.
func (g *ggufFile) readTexts(texts map[string]*string, err *error) {
	for key, text := range texts {
		if g.get(key) != nil {
			read(g, key, text, err)
		}
	}
}

// parameters reads the tensors of a steering file into s.Params.
func (g *ggufFile) parameters(s *Steering) error {
	tensors := make(map[string]Tensor)
	for _, t := range g.tensors {
		tensors[t.Name] = t
	}
	rows := func(i int, part string, dims int) ([][]float32, error) {
		name := tensorPrefix + s.parametersName(i) + "." + part
		t, ok := tensors[name]
		switch {
		case !ok:
			return nil, inputError(g.path, "tensor %q is missing", name)
		case t.Type != F32 || len(t.Shape) != dims || t.Shape[0] != int64(s.Embd):
			return nil, inputError(g.path, "tensor %q is %v of shape %v, expected F32 with %d dimensions and rows of %d", name, t.Type, t.Shape, dims, s.Embd)
		}
		delete(tensors, name)
		values, err := g.floats(t)
		return slices.Collect(slices.Chunk(values, s.Embd)), err
	}
	n := len(s.Layers)
	if s.Shared {
		n = min(n, 1)
	}
	for i := range n {
		vector, err := rows(i, "vector", 1)
		if err != nil {
			return err
		}
		p := Parameters{Vector: vector[0]}
		if s.Kind == Affine {
			if p.Left, err = rows(i, "left", 2); err != nil {
				return err
			}
			if p.Right, err = rows(i, "right", 2); err != nil {
				return err
			}
		}
		s.Params = append(s.Params, p)
	}
	for name := range tensors {
		return inputError(g.path, "tensor %q is none of this steering's: its kind is %s and its layers are %v", name, s.Kind, s.Layers)
	}
	return nil
}

// ParseActive splits FILE:STRENGTH at the last colon if a finite number
// follows; otherwise all of it is the file, and the strength is 1.
func ParseActive(arg string) (path string, strength float64) {
	if i := strings.LastIndexByte(arg, ':'); i >= 0 {
		if f, err := strconv.ParseFloat(arg[i+1:], 64); err == nil && !math.IsNaN(f) && !math.IsInf(f, 0) {
			return arg[:i], f
		}
	}
	return arg, 1
}

// Contents is what a GGUF file turned out to hold: a model or a steering, the
// other is nil.
type Contents struct {
	Model         *ModelFile
	Steering      *Steering
	ControlVector bool // Steering came from a llama.cpp control vector
}

// Inspect reads a model, as CheckModel does, a steering file or a control
// vector, whichever it is.
func Inspect(path string) (*Contents, error) {
	c := &Contents{}
	err := openGGUF(path, func(g *ggufFile) (err error) {
		c.ControlVector = g.isControlVector()
		if c.ControlVector || g.get(keyArch) == steeringArch {
			c.Steering, err = g.steering()
		} else {
			c.Model, err = g.model()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}
