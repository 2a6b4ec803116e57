class NeuralAcquisition:
    pass
