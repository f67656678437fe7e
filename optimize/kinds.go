package optimize

import (
	"slices"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

// Kind is the steering operator that the job asks for.
func (o *Options) Kind() loader.Kind {
	switch {
	case o.AffineRank != nil:
		return loader.Affine
	case o.VectorClamp == nil:
		return loader.Add
	case *o.VectorClamp == 0:
		return loader.Ablate
	}
	return loader.Clamp
}

// clamp is c of a clamp.
func (o *Options) clamp() float64 {
	if o.VectorClamp == nil {
		return 0
	}
	return *o.VectorClamp
}

// shape is how many vectors and matrix rows the operation of a steering has.
func (o *Options) shape() (vectors, rank int) {
	switch o.Kind() {
	case loader.Affine:
		return 1, *o.AffineRank
	case loader.Ablate:
		return 0, 1
	case loader.Clamp:
		return 1, 1
	}
	return 1, 0
}

// projects says whether the operator takes x's part along v, which v = 0 has none of.
func projects(k loader.Kind) bool { return k == loader.Ablate || k == loader.Clamp }

// raise is the transpose of ggmlsteer.Lower's derivative at p: of a gradient with
// respect to the operation, that with respect to the rows of the parameters.
//
// A clamp is Left = v, Right = −v/‖v‖², Vectors = c·v. With r the gradient by Right,
// Right contributes −r/‖v‖² + 2 (r·v) v/‖v‖⁴.
func raise(kind loader.Kind, clamp float64, p loader.Parameters, g ggmlsteer.Operation) [][]float64 {
	if !projects(kind) {
		all := make([][]float64, 0, 1+2*len(p.Left))
		for _, row := range slices.Concat(g.Vectors, g.Left, g.Right) {
			all = append(all, doubles(row))
		}
		return all
	}
	square, along := 0.0, 0.0
	for n, v := range p.Vector {
		square += float64(v) * float64(v)
		along += float64(v) * float64(g.Right[0][n])
	}
	sum := make([]float64, len(p.Vector))
	for n, v := range p.Vector {
		sum[n] = float64(g.Left[0][n]) - float64(g.Right[0][n])/square + 2*along*float64(v)/(square*square)
		if kind == loader.Clamp {
			sum[n] += clamp * float64(g.Vectors[0][n])
		}
	}
	return [][]float64{sum}
}

func doubles(v []float32) []float64 {
	x := make([]float64, len(v))
	for i := range v {
		x[i] = float64(v[i])
	}
	return x
}

func singles(v []float64) []float32 {
	x := make([]float32, len(v))
	for i := range v {
		x[i] = float32(v[i])
	}
	return x
}
