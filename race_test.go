//go:build race

package egress

func init() { raceDetector = true }
