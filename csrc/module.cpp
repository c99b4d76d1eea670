// pypeft_fast._C. Loading it runs the registrations at the foot of every kernel file; cpu_isa() is all that it holds.
#include <Python.h>

#include <exception>

#include "cpu/isa/select.h"

static_assert(Py_LIMITED_API == 0x030A0000, "setup.py tags the wheel for Python 3.10 and later");

static PyObject* cpu_isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(pypeft::isa_name(pypeft::selected_isa()));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

static PyMethodDef methods[] = {{"cpu_isa", cpu_isa, METH_NOARGS,
                                 "The instruction set that the kernels use: avx512bf16, avx512, avx2 or baseline; "
                                 "RuntimeError if PYPEFT_FAST_CPU is wrong."},
                                {nullptr, nullptr, 0, nullptr}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "PyPEFT-fast's C++ kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
