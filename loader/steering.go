package loader

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
)

// A Kind is one of the steering operators of docs/steering.md. At a steered
// layer, with x the residual stream of one token and s the strength:
//
//	add     x + s·v
//	affine  x + s·(v + Lᵀ R x)
//	ablate  x − s·v vᵀx/‖v‖²
//	clamp   x + s·(c·v − v vᵀx/‖v‖²)
type Kind string

const (
	Add    Kind = "add"
	Affine Kind = "affine"
	Ablate Kind = "ablate"
	Clamp  Kind = "clamp"
)

func (k Kind) validate() error {
	switch k {
	case Add, Affine, Ablate, Clamp:
		return nil
	}
	return fmt.Errorf("the kind is %q, expected add, affine, ablate or clamp", k)
}

// Parameters are what a steering holds for one layer: a vector of the model's
// width and, for Affine, the matrix M = Leftᵀ·Right as rank rows each.
type Parameters struct {
	Vector      []float32
	Left, Right [][]float32
}

// A Steering is what `llsteer optimize` finds and a steering file holds.
type Steering struct {
	Kind       Kind
	Clamp      float64      // c of Clamp
	Layers     []int        // ascending; x is the input of these blocks, counted from 0
	Shared     bool         // one Parameters for all of Layers, in place of one each
	PromptOnly bool         // steer the prompt's tokens only, not what is generated
	Params     []Parameters // parallel to Layers, or of length 1 if Shared

	Arch   string // GGUF architecture of the model it was made on
	Embd   int    // that model's width
	Model  string // that model's name or file name, for people
	Recipe string // the job that made it, as JSON; "" if left out
	Origin string // the files that it was made of, for people; "" where a job made it
}

// At returns the parameters of Layers[i].
func (s *Steering) At(i int) Parameters {
	if s.Shared {
		return s.Params[0]
	}
	return s.Params[i]
}

// Rank is the number of rows of each of the matrices L and R, at every layer.
func (s *Steering) Rank() int {
	if len(s.Params) == 0 {
		return 0
	}
	return len(s.Params[0].Left)
}

// Validate tells what is wrong with a steering: an unknown kind, layers that
// are not ascending, parameters of another number, width or rank than the
// steering says, or a number that is not finite.
func (s *Steering) Validate() error {
	if err := s.Kind.validate(); err != nil {
		return err
	}
	if s.Kind == Clamp {
		if math.IsNaN(s.Clamp) || math.IsInf(s.Clamp, 0) {
			return fmt.Errorf("c is %v, expected a finite number", s.Clamp)
		}
	} else if s.Clamp != 0 {
		return fmt.Errorf("c is %v, and only clamp has one, not %s", s.Clamp, s.Kind)
	}
	if len(s.Layers) == 0 {
		return errors.New("it steers no layer")
	}
	for i, l := range s.Layers {
		if l < 0 || l > math.MaxInt32 {
			return fmt.Errorf("it steers layer %d, expected a number from 0 on", l)
		}
		if i > 0 && l <= s.Layers[i-1] {
			return fmt.Errorf("its layers must ascend, but %d follows %d", l, s.Layers[i-1])
		}
	}
	expected := len(s.Layers)
	if s.Shared {
		expected = 1
	}
	if len(s.Params) != expected {
		return fmt.Errorf("it has parameters for %d layers, expected %d", len(s.Params), expected)
	}
	if s.Embd < 1 || s.Embd > math.MaxInt32 {
		return fmt.Errorf("its width is %d, expected a positive number", s.Embd)
	}
	rank := s.Rank()
	if (s.Kind == Affine) != (rank > 0) {
		return fmt.Errorf("its matrices have rank %d, which is not that of the kind %s", rank, s.Kind)
	}
	for i, p := range s.Params {
		where := "the shared parameters"
		if !s.Shared {
			where = fmt.Sprintf("layer %d", s.Layers[i])
		}
		if len(p.Left) != rank || len(p.Right) != rank {
			return fmt.Errorf("%s: left has %d rows and right %d, expected %d", where, len(p.Left), len(p.Right), rank)
		}
		if err := s.validateRows(where+": vector", [][]float32{p.Vector}); err != nil {
			return err
		}
		if err := s.validateRows(where+": left", p.Left); err != nil {
			return err
		}
		if err := s.validateRows(where+": right", p.Right); err != nil {
			return err
		}
	}
	if s.Recipe != "" && !json.Valid([]byte(s.Recipe)) {
		return errors.New("its recipe is not JSON")
	}
	return nil
}

func (s *Steering) validateRows(what string, rows [][]float32) error {
	for _, row := range rows {
		if len(row) != s.Embd {
			return fmt.Errorf("%s has %d numbers, expected the width %d", what, len(row), s.Embd)
		}
		for i, x := range row {
			if x-x != 0 { // NaN or infinite
				return fmt.Errorf("%s holds %v at index %d, expected finite numbers", what, x, i)
			}
		}
	}
	return nil
}

// CheckFits is an *InputError unless the steering can be used on a model of
// the given GGUF architecture, width and number of blocks. Whether it does there
// what it did on the model it was made on, nobody can tell.
func (s *Steering) CheckFits(arch string, embd, layers int) error {
	made := "made on an unnamed model"
	if s.Model != "" {
		made = "made on " + s.Model
	}
	if s.Arch != "" && s.Arch != arch {
		return &InputError{Message: fmt.Sprintf("the steering is for %s models (%s), and this model is %s", s.Arch, made, arch)}
	}
	if s.Embd != embd {
		return &InputError{Message: fmt.Sprintf("the steering is for models of width %d (%s), and this model's width is %d", s.Embd, made, embd)}
	}
	// a control vector may have a direction for the output of the last block
	if last := s.Layers[len(s.Layers)-1]; last > layers {
		return &InputError{Message: fmt.Sprintf("the steering is for layer %d (%s), and this model has layers 0 to %d", last, made, layers-1)}
	}
	return nil
}
