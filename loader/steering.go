package loader

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
}

// At returns the parameters of Layers[i].
func (s *Steering) At(i int) Parameters {
	if s.Shared {
		return s.Params[0]
	}
	return s.Params[i]
}
