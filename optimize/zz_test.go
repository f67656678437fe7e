package optimize

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
)

func TestZZ(t *testing.T) {
	m, err := ggmlsteer.Open(os.Getenv("ZZ"), ggmlsteer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	n := m.Info().Layers
	for _, l := range []int{0, n / 2, n - 1} {
		job := &Job{Options: DefaultOptions(), Layers: Layers{List: []int{l}}, Examples: []Example{{Prompt: "The weather in the north is", Src: []string{" cold and grey."}, Dst: []string{" warm and sunny."}}}}
		s, err := newSetup(engine{m}, job)
		if err != nil {
			t.Fatal(err)
		}
		S, err := s.streamNorms(context.Background())
		o, err := s.objective()
		if err != nil {
			t.Fatal(err)
		}
		defer o.session.Close()
		e, err := o.evaluate(context.Background(), s.params)
		if err != nil {
			t.Fatal(err)
		}
		g := e.gradient[0].Vector
		fmt.Printf("layer %d stream %.1f loss %.4f |g| %.5f  |g|S %.4f\n", l, S[0], e.loss, norm(g), norm(g)*S[0])
		r := rand.New(rand.NewPCG(1, 2))
		for dir := range 4 {
			u := make([]float64, len(g))
			q := 0.0
			for i := range u {
				u[i] = float64(g[i])
				if dir > 0 {
					u[i] = r.NormFloat64()
				}
				q += u[i] * u[i]
			}
			a := 0.0
			for i := range u {
				u[i] /= math.Sqrt(q)
				a += u[i] * float64(g[i])
			}
			sc := norm(g)
			if dir > 0 {
				sc /= math.Sqrt(float64(len(g)))
			}
			for k := range 12 {
				h := S[0] * 0.5 * math.Pow(2, -float64(k))
				f := [2]float64{}
				for j, sign := range []float64{-1, 1} {
					v := make([]float32, len(u))
					for i := range v {
						v[i] = float32(float64(s.params[0].Vector[i]) + sign*h*u[i])
					}
					e, _, err := o.forward(context.Background(), []loader.Parameters{{Vector: v}})
					if err != nil {
						t.Fatal(err)
					}
					f[j] = e.loss
				}
				D := (f[1] - f[0]) / (2 * h)
				fmt.Printf("  dir %d h/S %.5f df %.5f relerr %.2e\n", dir, h/S[0], f[1]-f[0], (D-a)/sc)
			}
		}
	}
}
