package ggmlsteer

import "github.com/llsteer/llsteer/loader"

// Lower is the engine's form of a steering operator at strength 1. A zero
// vector has no direction: Ablate and Clamp with it change nothing.
func Lower(kind loader.Kind, clamp float64, p loader.Parameters) Operation {
	switch kind {
	case loader.Affine:
		return Operation{Vectors: [][]float32{p.Vector}, Left: p.Left, Right: p.Right}
	case loader.Ablate, loader.Clamp:
		square := 0.0
		for _, v := range p.Vector {
			square += float64(v) * float64(v)
		}
		if square == 0 {
			return Operation{}
		}
		right, vector := make([]float32, len(p.Vector)), make([]float32, len(p.Vector))
		for i, v := range p.Vector {
			right[i] = float32(-float64(v) / square)
			vector[i] = float32(clamp * float64(v))
		}
		op := Operation{Left: [][]float32{p.Vector}, Right: [][]float32{right}}
		if kind == loader.Clamp {
			op.Vectors = [][]float32{vector}
		}
		return op
	default:
		return Operation{Vectors: [][]float32{p.Vector}}
	}
}
