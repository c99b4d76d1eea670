// pypeft_fast._C. Loading it runs the registrations at the foot of every kernel file.
#include <Python.h>

#include <cstring>
#include <exception>

#include "cpu/isa/select.h"
#include "cpu/segments/adapter_table.h"

static_assert(Py_LIMITED_API == 0x030A0000, "setup.py tags the wheel for Python 3.10 and later");

static PyObject* cpu_isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(pypeft::isa_name(pypeft::selected_isa()));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

// The dictionaries and objects of many adapters lie all over the memory: those of the next steps are fetched ahead.
constexpr Py_ssize_t AHEAD = 24;

// Fetches the tables of keys and of values to which a dictionary that has been fetched points. They are looked for
// where CPython 3.10 to 3.13 have them, at the end of a dictionary of 48 bytes; elsewhere a wrong line is fetched.
static void fetch_tables(PyObject* dict) {
  constexpr size_t SIZE = 48;
  static const bool is_large_enough = [] {
    PyObject* size = PyObject_GetAttrString((PyObject*)&PyDict_Type, "__basicsize__");
    const bool enough = size && PyLong_AsSsize_t(size) >= (Py_ssize_t)SIZE;
    Py_XDECREF(size);
    PyErr_Clear();
    return enough;
  }();
  if (!is_large_enough || !PyDict_Check(dict)) return;
  void* tables[2];
  memcpy(tables, (char*)dict + SIZE - sizeof tables, sizeof tables);
  __builtin_prefetch(tables[0]);
  __builtin_prefetch((char*)tables[0] + 64);
  __builtin_prefetch(tables[1]);
}

static PyObject* all_hold(PyObject*, PyObject* args) {
  PyObject *dicts, *keys, *values, *absent, *objects, *types, *const list = (PyObject*)&PyList_Type;
  if (!PyArg_ParseTuple(args, "O!O!O!OO!O!", list, &dicts, list, &keys, list, &values, &absent, list, &objects, list,
                        &types)) {
    return nullptr;
  }
  const Py_ssize_t n = PyList_Size(dicts), m = PyList_Size(objects);
  if (PyList_Size(keys) != n || PyList_Size(values) != n || PyList_Size(types) != m) {
    PyErr_SetString(PyExc_ValueError, "all_hold: the lists have different lengths");
    return nullptr;
  }
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (i + 2 * AHEAD < PyList_Size(dicts)) __builtin_prefetch(PyList_GetItem(dicts, i + 2 * AHEAD));
    if (i + AHEAD < PyList_Size(dicts)) fetch_tables(PyList_GetItem(dicts, i + AHEAD));
    PyObject *dict = PyList_GetItem(dicts, i), *key = PyList_GetItem(keys, i), *wanted = PyList_GetItem(values, i);
    if (!dict || !key || !wanted) return nullptr;  // a key's own __eq__ has made a list shorter
    if (!PyDict_Check(dict)) {
      PyErr_SetString(PyExc_TypeError, "all_hold: dicts holds another object");
      return nullptr;
    }
    Py_INCREF(dict), Py_INCREF(key);
    PyObject* value = PyDict_GetItemWithError(dict, key);  // compared only, so that no reference to it is needed
    Py_DECREF(dict), Py_DECREF(key);
    if (!value && PyErr_Occurred()) return nullptr;
    if ((value ? value : absent) != wanted) Py_RETURN_FALSE;
  }
  for (Py_ssize_t i = 0; i < m; ++i) {
    if (i + AHEAD < PyList_Size(objects)) __builtin_prefetch(PyList_GetItem(objects, i + AHEAD));
    PyObject *object = PyList_GetItem(objects, i), *type = PyList_GetItem(types, i);
    if (!object || !type) return nullptr;
    if ((PyObject*)Py_TYPE(object) != type) Py_RETURN_FALSE;
  }
  Py_RETURN_TRUE;
}

// function(number) of a Python int.
template <class Function>
static PyObject* call_with_number(PyObject* given, Function function) {
  const long long number = PyLong_AsLongLong(given);
  if (number == -1 && PyErr_Occurred()) return nullptr;
  try {
    return function(number);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

static PyObject* table_holds(PyObject*, PyObject* number) {
  return call_with_number(number, [](int64_t table) { return PyBool_FromLong(pypeft::table_holds(table)); });
}

static PyObject* release_table(PyObject*, PyObject* number) {
  return call_with_number(number, [](int64_t table) {
    pypeft::release_table(table);
    Py_RETURN_NONE;
  });
}

static PyMethodDef methods[] = {
    {"cpu_isa", cpu_isa, METH_NOARGS,
     "The instruction set that the kernels use: avx512bf16, avx512, avx2 or baseline; "
     "RuntimeError if PYPEFT_FAST_CPU is wrong."},
    {"all_hold", all_hold, METH_VARARGS,
     "all_hold(dicts, keys, values, absent, objects, types): whether every "
     "dicts[i].get(keys[i], absent) is values[i], and every type(objects[i]) types[i]."},
    {"table_holds", table_holds, METH_O,
     "table_holds(number): whether this table of adapters is kept, with tensors on the CPU with the dtypes and the "
     "addresses that they had when the table was made."},
    {"release_table", release_table, METH_O, "release_table(number): frees this table of adapters, if it is kept."},
    {nullptr, nullptr, 0, nullptr}};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "PyPEFT-fast's C++ kernels.", -1, methods, nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
